"""Words that messages share."""

import pytest

from fedprune.errors import listing


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("", ""),
        ("abc", "a, b, c"),
        ("abcd", "a, b, c and 1 more"),
        ("a" * 1234, "a, a, a and 1,231 more"),
    ],
)
def test_a_list_is_cut_and_says_by_how_much(names, expected):
    assert listing(list(names), 3) == expected
