"""The page of a sweep, and the curves on it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.report.curves import CURVES_STYLE, Curve, Dot, Plane, Scale, _styles
from fedprune.report.series import places, time_series
from fedprune.report.sweep_page import Run, SweepFacts, render_sweep
from fedprune.results.sweep import DOWN, PRUNE_SECONDS, UP, Axes, Row, all_pivots

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
    return render_sweep(
        SweepFacts("a <title>", "fedprune sweep x", AXES, [*runs, *more], pivots, seconds, "1.2")
    )


def test_the_page_says_what_was_done() -> None:
    text = page()
    assert "<h1>a &lt;title&gt;</h1>" in text and "<two>" not in text
    assert "8 runs · 2 seeds · 75.0 s this time" in text
    assert "fedprune sweep x" in text
    assert "6.00 ± 1.41" in text
    assert text.count('href="0%3Da%2Cb/report.html"') == 1
    assert "Failed jobs" not in text
    assert "this time" not in page(seconds=0.0)  # collected, not run


def test_failed_and_waiting_jobs_are_shown() -> None:
    text = page(Run("three", "", None, "no <quorum>"), Run("four", "", None))
    assert "8 of 10 runs" in text
    assert "Failed jobs" in text and "no &lt;quorum&gt;" in text
    assert text.count("<td>failed</td>") == text.count("<td>not yet</td>") == 4


def test_the_page_asks_for_nothing_and_has_no_inline_styles() -> None:
    text = page()
    assert not re.search(r"https?://|<script|<link|<img| style=| on\w+=", text)


def test_every_chart_has_a_text_for_those_who_do_not_see_it() -> None:
    text = page()
    labels = re.findall(r'<div class="curves" role="img" aria-label="([^"]+)"', text)
    assert labels == [
        "Perplexity (x) by sparsity",
        "Perplexity (x) against bytes",
        "Seconds by sparsity",
    ]


def test_time_is_a_curve_for_each_method() -> None:
    curves = time_series(ROWS, AXES)
    assert [curve.label for curve in curves] == ["strategy=one", "strategy=<two>"]
    assert [(p.x, p.mean, p.low, p.high) for p in curves[0].points] == [
        ("0.5", 4.0, 3.0, 5.0),
        ("0.7", 4.0, 3.0, 5.0),
    ]


def test_places_on_an_axis() -> None:
    assert places(["0.3", "0.5"]) == {"0.3": 0.3, "0.5": 0.5}
    assert places(["1", "64"]) == {"1": 0.0, "64": 6.0}
    assert places(["row", "layer"]) == {"row": 0.0, "layer": 1.0}


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=9))
def test_a_scale_holds_its_values_between_few_round_ticks(values: list[float]) -> None:
    scale = Scale.over(values)
    assert 2 <= len(scale.ticks) <= 16
    assert list(scale.ticks) == sorted(set(scale.ticks))
    slack = 1e-6 * max(values)
    assert scale.ticks[0] <= min(values) + slack and max(values) - slack <= scale.ticks[-1]
    heights = [scale.height(value) for value in sorted(values)]
    assert heights == sorted(heights, reverse=True)
    assert all(13.9 <= height <= 226.1 for height in heights)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([14.6, 40.1], (10.0, 20.0, 30.0, 40.0, 50.0)),
        ([5.0], (5.0, 6.0)),
        ([12.0, 300.0], (10.0, 20.0, 50.0, 100.0, 200.0, 500.0)),
        ([12.0, 1e7], (10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7)),
    ],
)
def test_ticks(values: list[float], ticks: tuple[float, ...]) -> None:
    assert Scale.over(values).ticks == pytest.approx(ticks)


def test_values_that_span_a_wide_range_stand_by_their_logarithm() -> None:
    scale = Scale.over([10.0, 1000.0])
    middle = (scale.height(10.0) + scale.height(1000.0)) / 2
    assert scale.logarithmic and scale.height(100.0) == pytest.approx(middle)


def test_labels_that_would_overlap_on_a_phone_are_left_out() -> None:
    ticks = {f"{n}00.0 kB": float(n) for n in range(1, 9)}
    drawn = Plane("label", "across", ticks, str).draw([curve("a")])
    shown = re.findall(r">(\d)00\.0 kB<", drawn)
    assert shown[0] == "1" and 2 <= len(shown) < 5


def curve(label: str, baseline: bool = False) -> Curve:
    return Curve(
        label, (Dot(1.0, 2.0, 1.5, 2.5, "two"), Dot(8.0, 3.0, 3.0, 3.0, "three")), baseline
    )


def test_every_curve_can_be_told_from_the_others() -> None:
    curves = [curve(str(n), n % 3 == 0) for n in range(18)]
    assert len(set(_styles(curves)) - {("kb", None)}) >= 15
    assert all(f".{colour} " in CURVES_STYLE for colour, _ in _styles(curves))


def test_points_spreads_and_lines_stand_where_they_belong() -> None:
    drawn = Plane("label", "across", {"1": 1.0, "8": 8.0}, str).draw([curve("a")])
    scale = Scale.over([1.5, 2.5, 3.0])
    circles = re.findall(r'<circle class="k0" cx="([\d.]+)%" cy="([\d.]+)"', drawn)
    assert [(float(x), float(y)) for x, y in circles] == [
        (6.0, pytest.approx(scale.height(2.0), abs=0.01)),
        (94.0, pytest.approx(scale.height(3.0), abs=0.01)),
    ]
    assert drawn.count('class="k0 spread"') == 1
