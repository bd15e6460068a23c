"""What a setting costs and gives, and that it is drawn with a label for every point."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from fedprune.report.byte_plot import _draw, costs, plot_bytes, spread_out
from fedprune.results.sweep import DOWN, UP, Axes, Row

AXES = Axes(("strategy", "strategy.decode", "pruner"), ("sparsity",))


def row(strategy: str, decode: str, sparsity: str, seed: str, pruned: float) -> Row:
    return {
        "strategy": strategy,
        "strategy.decode": decode,
        "pruner": "wanda",
        "sparsity": sparsity,
        "seed": seed,
        "perplexity.x.dense": 4.0,
        "perplexity.x.pruned": pruned,
        "perplexity.geometric mean.dense": 4.0,
        "perplexity.geometric mean.pruned": 2 * pruned,
        UP: 3e6 + int(seed) * 1e6 if strategy == "fedprllm" else 1e4,
        DOWN: 1e9,
    }


ROWS = [
    row(strategy, decode, sparsity, seed, base * 10 * float(sparsity) + int(seed))
    for strategy, decode, base in (
        ("fedprllm", "false", 2.0),
        ("fedprllm", "true", 1.5),
        ("fedstats", "false", 1.0),
    )
    for sparsity in ("0.5", "0.7")
    for seed in ("0", "2")
]


def test_a_point_for_each_setting_with_the_keys_that_vary() -> None:
    here = [r for r in ROWS if r["sparsity"] == "0.5"]
    found = costs(here, AXES.rows, "x")
    assert [point.label for point in found] == [
        "fedprllm decode=false",
        "fedprllm decode=true",
        "fedstats decode=false",
    ]
    first = found[0]
    assert (first.megabytes, first.mean, first.low, first.high) == (4.0, 11.0, 10.0, 12.0)
    assert costs(here, AXES.rows, "geometric mean")[0].mean == 22.0
    assert found[2].megabytes == pytest.approx(0.01)


def test_collapsed_settings_have_no_point() -> None:
    lost = [{**r, "perplexity.x.pruned": float("inf")} for r in ROWS if r["strategy"] == "fedstats"]
    kept = [r for r in ROWS if r["strategy"] != "fedstats"]
    assert len(costs([*kept, *lost], ["strategy"], "x")) == 1
    assert costs(kept, [], "x")[0].label == "all"


def test_both_files_show_every_label_in_every_column(tmp_path: Path) -> None:
    png, svg = plot_bytes(ROWS, AXES, "a title", tmp_path)
    assert (png.name, svg.name) == ("bytes.png", "bytes.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    for label in ("fedprllm decode=true", "fedstats decode=false"):
        assert text.count(f"<!-- {label} -->") == 2
    assert "<!-- perplexity (geometric mean) -->" in text
    assert "<!-- sparsity 0.7 -->" in text
    assert plot_bytes(ROWS, AXES, "a title", tmp_path)[1].read_text() == text


@pytest.mark.parametrize(
    ("rows", "axes"),
    [
        (ROWS[:1], Axes((), ())),
        (ROWS, Axes(("sparsity",), ())),
        ([{**r, "perplexity.x.pruned": None} for r in ROWS], AXES),
        ([{**r, UP: 0.0} for r in ROWS], AXES),
    ],
)
def test_odd_sweeps_are_drawn(tmp_path: Path, rows: list[Row], axes: Axes) -> None:
    for path in plot_bytes(rows, axes, "a title", tmp_path):
        assert path.stat().st_size > 1000


def test_one_data_set_is_drawn_by_itself(tmp_path: Path) -> None:
    alone = [{k: v for k, v in r.items() if "geometric" not in k} for r in ROWS]
    assert "<!-- perplexity (x) -->" in plot_bytes(alone, AXES, "t", tmp_path)[1].read_text()


@pytest.mark.parametrize(
    ("heights", "gap", "wanted"),
    [
        ([], 0.1, []),
        ([0.2, 0.8], 0.1, [0.2, 0.8]),
        ([0.5, 0.5, 0.5], 0.1, [0.5, 0.6, 0.7]),
        ([0.95, 0.97, 0.99], 0.1, [0.8, 0.9, 1.0]),
        ([-0.5, 0.0], 0.25, [0.0, 0.25]),
    ],
)
def test_labels_stand_apart_and_inside(
    heights: list[float], gap: float, wanted: list[float]
) -> None:
    assert spread_out(heights, gap) == pytest.approx(wanted)


def test_nothing_lies_over_the_points() -> None:
    panel = Figure().subplots()
    here = [r for r in ROWS if r["sparsity"] == "0.5"]
    _draw(panel, costs(here, AXES.rows, "x"), [4.0])
    assert panel.get_legend() is None
    labels = [text for text in panel.texts if text.get_text()]
    assert {"dense", "fedstats decode=false"} <= {text.get_text() for text in labels}
    assert all(text.get_position()[0] > 1 for text in labels)  # beside the panel
