"""What the plots show, and that they are drawn."""

from pathlib import Path

import pytest

from fedprune.report.plots import _shown, plot_sweep
from fedprune.report.series import (
    baseline_series,
    is_numeric,
    method_series,
    short_names,
    within,
    x_axis,
)
from fedprune.results.perplexity import SUMMARIES
from fedprune.results.sweep import DOWN, UP, Axes, Row

AXES = Axes(("strategy.group",), ("sparsity",))


def row(group: str, sparsity: str, seed: str, pruned: float) -> Row:
    return {
        "strategy.group": group,
        "sparsity": sparsity,
        "seed": seed,
        "perplexity.x.dense": 4.0,
        "perplexity.x.centralized": 5.0 + int(seed),
        "perplexity.x.local_only.mean": None,
        "perplexity.x.pruned": pruned,
        UP: 2e6,
        DOWN: 1e6,
    }


ROWS = [
    row(group, sparsity, seed, 10 * float(sparsity) * factor + int(seed))
    for group, factor in (("layer", 1.0), ("column", 100.0))
    for sparsity in ("0.7", "0.5")
    for seed in ("0", "2")
]


def test_a_curve_for_each_method_with_its_spread() -> None:
    layer, column = method_series(ROWS, AXES, "x")
    assert (layer.label, column.label) == ("group=layer", "group=column")
    assert [point.x for point in layer.points] == ["0.5", "0.7"]
    first = layer.points[0]
    assert (first.mean, first.low, first.high, first.megabytes) == (6.0, 5.0, 7.0, 3.0)


def test_baselines_are_drawn_once() -> None:
    found = baseline_series(ROWS, AXES, "x")
    assert [series.label for series in found] == ["dense", "centralised"]
    assert found[1].points[0].mean == 6.0


def test_collapsed_points_can_be_left_out() -> None:
    everything = [*method_series(ROWS, AXES, "x"), *baseline_series(ROWS, AXES, "x")]
    assert [series.label for series in within(everything, 10)] == [
        "group=layer",
        "dense",
        "centralised",
    ]


def test_the_axis_is_sparsity_or_else_what_varies() -> None:
    assert x_axis(ROWS, AXES) == "sparsity"
    one = [r for r in ROWS if r["sparsity"] == "0.5"]
    assert x_axis(one, AXES) == "strategy.group"
    clients = [{**r, "n": n} for r in one for n in ("2", "64")]
    assert x_axis(clients, Axes(("strategy.group", "n"), ())) == "n"
    assert x_axis(one[:1], AXES) == "sparsity"


def test_short_names_stay_apart() -> None:
    assert short_names(["strategy.scaling", "pruner.group"]) == ["scaling", "group"]
    assert short_names(["strategy.group", "pruner.group"]) == ["strategy.group", "pruner.group"]


def test_many_data_sets_are_summed_up() -> None:
    few, many = ["a", "b"], [f"d{number}" for number in range(5)]
    assert _shown([*few, *SUMMARIES]) == [*few, *SUMMARIES]
    assert _shown([*many, *SUMMARIES]) == list(SUMMARIES)
    assert _shown(many) == many


def test_numbers_are_told_from_names() -> None:
    assert is_numeric(["0.5", "2"]) and not is_numeric(["0.5", "row"]) and not is_numeric(["nan"])


@pytest.mark.parametrize(
    ("rows", "axes"),
    [
        (ROWS, AXES),
        (ROWS[:1], AXES),
        ([r for r in ROWS if r["sparsity"] == "0.5"], AXES),
        ([{**r, "n": n} for r in ROWS for n in ("2", "64")], Axes(("n",), ("strategy.group",))),
        ([{**r, "perplexity.x.pruned": float("inf")} for r in ROWS], AXES),
    ],
)
def test_both_files_are_written(tmp_path: Path, rows: list[Row], axes: Axes) -> None:
    png, svg = plot_sweep(rows, axes, "a title", tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    assert "<svg" in text
    again = plot_sweep(rows, axes, "a title", tmp_path)[1]
    assert again.read_text() == text


def test_seeds_that_agree_have_no_spread(tmp_path: Path) -> None:
    # The mean of three times this number is an ulp above it.
    same = [row("layer", "0.5", str(seed), 0.0) for seed in range(3)]
    for value in same:
        value["perplexity.x.pruned"] = 5.204967498779297 + 0.1
        value["perplexity.x.centralized"] = 0.1
    plot_sweep(same, AXES, "title", tmp_path)
    assert (tmp_path / "plot.png").stat().st_size > 1000
