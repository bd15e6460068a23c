"""Figures as text, and text of others made harmless."""

import pytest

from fedprune.results import text


@pytest.mark.parametrize(
    ("share", "digits", "expected"),
    [
        (0.5, 1, "50.0%"),
        (0.0, 1, "0.0%"),
        (1.0, 1, "100.0%"),
        (0.00001, 1, "<0.1%"),
        (0.99999, 1, ">99.9%"),
        (0.99999, 2, ">99.99%"),
        (None, 1, "–"),
    ],
)
def test_percent_never_rounds_to_all_or_nothing(share, digits, expected):
    assert text.percent(share, digits) == expected


def test_figures_as_text():
    assert [text.figure(v) for v in (5.127, 12345.0, None, float("inf"))] == [
        "5.13",
        "1.23e+04",
        "–",
        "–",
    ]
    assert [text.seconds(v) for v in (0, 0.04, 1.26, 119.9, 120, 7199, 7200, None)] == [
        *("0 s", "40 ms", "1.3 s", "119.9 s", "2 min 0 s", "119 min 59 s", "2 h 0 min", "–")
    ]
    assert [text.rise(v) for v in (1.0, 1.255, 0.9, 50.0)] == [
        "+0.0%",
        "+25.5%",
        "−10.0%",
        "50 times",
    ]
    assert [text.beside(v) for v in (1.0001, 1.255, 0.9, 50.0)] == [
        *("level with", "25.5% above", "10.0% below", "50 times")
    ]
    assert text.count(1, "client") == "1 client" and text.count(1200, "client") == "1,200 clients"
    assert text.spans([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert text.short("abcdefghij", 7) == "abc…hij" and text.short("abc", 7) == "abc"


def test_markdown_shows_text_as_it_is():
    assert text.markdown_text("a|b <i> [x](y) *z*") == r"a\|b \<i\> \[x\](y) \*z\*"
    assert text.markdown_text("two\nlines\x1b[1m \u202e") == "two lines\ufffd\\[1m \ufffd"
    assert text.markdown_table(["a"], [["b|"]]) == "| a |\n| --- |\n| b\\| |\n"


def test_settings_that_differ_look_different():
    values = [None, "null", True, "true", 1, "1", 1.5, "1.5", "", " ", "a", "a ", "a\n", '"a"']
    values += ["[a]", "[b]", "\u00e9", "e\u0301", "a\u200b", "a\u200c", "a\u00a0b", "a b", "NaN"]
    shown = [text.setting_text(value) for value in values]
    assert len(set(shown)) == len(values) and all(one.isprintable() for one in shown)
    for plain in ("[a]*.txt", "wanda", "2:4", "\u00e9t\u00e9", "/srv/a b"):
        assert text.setting_text(plain) == plain
