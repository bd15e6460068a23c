"""The page of a sweep."""

import re

import pytest

from fedprune.report.page import render_sweep
from fedprune.report.sweep import Run, Story, SweepFacts
from fedprune.results.perplexity import SUMMARIES
from fedprune.results.sweep import DOWN, EXCESS, PRUNE_SECONDS, UP, Axes, Row, all_pivots
from tests.support.markup import Markup

AXES = Axes(("strategy",), ("sparsity",))


def row(strategy: str, sparsity: str, seed: str, pruned: float) -> Row:
    return {
        "strategy": strategy,
        "sparsity": sparsity,
        "seed": seed,
        "sparsity.overall": float(sparsity),
        "perplexity.x.dense": 4.0,
        "perplexity.x.centralized": 5.0,
        "perplexity.x.local_only.mean": None,
        "perplexity.x.pruned": pruned,
        EXCESS: pruned / 100,
        PRUNE_SECONDS: 3.0 + int(seed),
        UP: 2e6 * float(sparsity),
        DOWN: 1e6,
    }


ROWS = [
    row(strategy, sparsity, seed, 10 * float(sparsity) + int(seed))
    for strategy in ("one", "<two>")
    for sparsity in ("0.5", "0.7")
    for seed in ("0", "2")
]


def page(*more: Run, seconds: float = 75.0) -> str:
    label = "{strategy} {sparsity} {seed}"
    runs = [Run(label.format(**one), f"{n}=a,b/report.html", one) for n, one in enumerate(ROWS)]
    pivots = all_pivots(ROWS, AXES)
    story = Story("a <title>", "fedprune sweep x", AXES, seconds)
    return render_sweep(SweepFacts(story, [*runs, *more], pivots, "1.2"))


@pytest.fixture(scope="module")
def text():
    return page()


def test_the_page_says_what_was_done(text):
    assert "<h1>a &lt;title&gt;</h1>" in text and "<two>" not in text
    assert "8 runs · 2 seeds · 75.0 s this time" in text
    assert "fedprune sweep x" in text
    assert "6.00 ± 1.41" in text
    assert text.count('href="0%3Da%2Cb/report.html"') == 1
    assert "Failed jobs" not in text
    assert "this time" not in page(seconds=0.0)  # collected, not run


def test_failed_and_waiting_jobs_are_shown():
    text = page(Run("three", "", None, "no <quorum>"), Run("four", "", None))
    assert "8 of 10 runs" in text
    assert "Failed jobs" in text and "no &lt;quorum&gt;" in text
    assert text.count("<td>failed</td>") == text.count("<td>not yet</td>") == 4


def test_the_page_asks_for_nothing_and_has_no_inline_styles(text):
    assert not re.search(r"https?://|<script|<link|<img| style=| on\w+=", text)


def test_every_chart_has_a_text_for_those_who_do_not_see_it(text):
    labels = re.findall(r'<div class="drawn" role="img" aria-label="([^"]+)"', text)
    assert labels == [
        "Perplexity (x) by sparsity",
        "What is left of the dense model, against bytes",
        "Perplexity (x) against bytes",
        "Seconds by sparsity",
    ]


def test_every_page_is_whole_and_its_ids_are_its_own():
    found = Markup(page(Run("three", "", None, "no")))
    identifiers = [a["id"] for _, a in found.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers)) > 10
    targets = [a["href"] for a in found.all("a") if a["href"][0] == "#"]
    assert targets and all(href[1:] in identifiers for href in targets)


def test_of_many_data_sets_the_summaries_come_first_and_the_others_are_folded(text):
    rows = [
        {**one, **{f"perplexity.{name}.pruned": 5.0 for name in ("a", "b", "c", "d", *SUMMARIES)}}
        for one in ROWS
    ]
    runs = [Run("", "", one) for one in rows]
    many = render_sweep(SweepFacts(Story("t", "c", AXES, 0.0), runs, all_pivots(rows, AXES), "1"))
    places = [many.index(f"Perplexity ({name})") for name in (*SUMMARIES, "x", "a", "d")]
    assert places == sorted(places)
    folded = re.findall(r"<details><summary>([^<]+)</summary>", many)
    assert folded[:5] == [f"Perplexity ({name})" for name in ("x", "a", "b", "c", "d")]
    assert "Perplexity (x)" not in re.findall(r"<summary>([^<]+)</summary>", text)


def test_no_name_of_a_data_set_or_setting_is_markup():
    hostile = "<img src=x onerror=alert(1)>$x^$"
    rows = [
        {key.replace(".x.", f".{hostile}."): value for key, value in one.items()} for one in ROWS
    ]
    runs = [Run(hostile, f"{hostile}/report.html", one) for one in rows]
    pivots = all_pivots(rows, AXES)
    text = render_sweep(SweepFacts(Story(hostile, hostile, AXES, 1.0), runs, pivots, "1"))
    assert "<img" not in text and Markup(text).text().count(hostile) > 10
