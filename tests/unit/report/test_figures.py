"""What the figures of a sweep show, and that they are drawn: for files, and for pages."""

import math
import re
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from fedprune.report.figures import (
    COLOURS,
    _Drawn,
    _labelled,
    bytes_drawing,
    frontier_drawing,
    perplexity_drawing,
    plot_bytes,
    plot_frontier,
    plot_sweep,
    shown_datasets,
    spread_out,
    time_drawing,
)
from fedprune.report.series import (
    Cost,
    baseline_series,
    costs,
    frontier_series,
    is_numeric,
    method_series,
    places,
    short_names,
    unbeaten,
    within,
    x_axis,
)
from fedprune.results.perplexity import SUMMARIES
from fedprune.results.sweep import DOWN, EXCESS, PRUNE_SECONDS, UP, Axes, Row
from tests.support.markup import Markup

AXES = Axes(("strategy.group",), ("sparsity",))
X = "perplexity.x.pruned"


def row(group: str, sparsity: str, seed: str, pruned: float) -> Row:
    return {
        "strategy.group": group,
        "sparsity": sparsity,
        "seed": seed,
        "perplexity.x.dense": 4.0,
        "perplexity.x.centralized": 5.0 + int(seed),
        "perplexity.x.local_only.mean": None,
        "perplexity.x.pruned": pruned,
        EXCESS: math.log(pruned / 4.0) if pruned else None,
        UP: 2e6,
        DOWN: 1e6,
        PRUNE_SECONDS: 3.0 + int(seed),
    }


ROWS = [
    row(group, sparsity, seed, 10 * float(sparsity) * factor + int(seed))
    for group, factor in (("layer", 1.0), ("column", 100.0))
    for sparsity in ("0.7", "0.5")
    for seed in ("0", "2")
]


def test_a_curve_for_each_method_with_its_spread():
    layer, column = method_series(ROWS, AXES, X)
    assert (layer.label, column.label) == ("group=layer", "group=column")
    assert [point.x for point in layer.points] == ["0.5", "0.7"]
    first = layer.points[0]
    assert (first.mean, first.low, first.high, first.megabytes) == (6.0, 5.0, 7.0, 3.0)


def test_baselines_are_drawn_once():
    found = baseline_series(ROWS, AXES, "x")
    assert [series.label for series in found] == ["dense", "centralised"]
    assert found[1].points[0].mean == 6.0


def test_collapsed_points_can_be_left_out():
    everything = [*method_series(ROWS, AXES, X), *baseline_series(ROWS, AXES, "x")]
    assert [series.label for series in within(everything, 10)] == [
        "group=layer",
        "dense",
        "centralised",
    ]


def test_the_axis_is_sparsity_or_else_what_varies():
    assert x_axis(ROWS, AXES) == "sparsity"
    one = [r for r in ROWS if r["sparsity"] == "0.5"]
    assert x_axis(one, AXES) == "strategy.group"
    clients = [{**r, "n": n} for r in one for n in ("2", "64")]
    assert x_axis(clients, Axes(("strategy.group", "n"), ())) == "n"
    assert x_axis(one[:1], AXES) == "sparsity"


def test_short_names_stay_apart():
    assert short_names(["strategy.scaling", "pruner.group"]) == ["scaling", "group"]
    assert short_names(["strategy.group", "pruner.group"]) == ["strategy.group", "pruner.group"]


def test_many_data_sets_are_summed_up():
    few, many = ["a", "b"], [f"d{number}" for number in range(5)]
    assert shown_datasets([*few, *SUMMARIES]) == [*few, *SUMMARIES]
    assert shown_datasets([*many, *SUMMARIES]) == list(SUMMARIES)
    assert shown_datasets(many) == many


def test_numbers_are_told_from_names():
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
def test_both_files_are_written(tmp_path, rows, axes):
    png, svg = plot_sweep(rows, axes, "a title", tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()


def test_the_same_table_gives_the_same_file(tmp_path):
    first, second = (plot_sweep(ROWS, AXES, "a title", tmp_path)[1].read_text() for _ in range(2))
    assert first == second


def test_seeds_that_agree_have_no_spread(tmp_path):
    # The mean of three times this number is an ulp above it.
    same = [row("layer", "0.5", str(seed), 0.0) for seed in range(3)]
    for value in same:
        value["perplexity.x.pruned"] = 5.204967498779297 + 0.1
        value["perplexity.x.centralized"] = 0.1
    plot_sweep(same, AXES, "title", tmp_path)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_time_is_a_curve_for_each_method():
    curves = method_series(ROWS, AXES, PRUNE_SECONDS)
    assert [curve.label for curve in curves] == ["group=layer", "group=column"]
    assert [(p.x, p.mean, p.low, p.high) for p in curves[0].points] == [
        ("0.5", 4.0, 3.0, 5.0),
        ("0.7", 4.0, 3.0, 5.0),
    ]


def test_places_on_an_axis():
    assert places(["0.3", "0.5"]) == {"0.3": 0.3, "0.5": 0.5}
    assert places(["1", "64"]) == {"1": 0.0, "64": 6.0}
    assert places(["row", "layer"]) == {"row": 0.0, "layer": 1.0}


DRAWINGS = {
    "perplexity": lambda rows, axes: perplexity_drawing(rows, axes, "x", "one"),
    "bytes": lambda rows, axes: bytes_drawing(rows, axes, "x", "one"),
    "frontier": lambda rows, axes: frontier_drawing(rows, axes, "one"),
    "time": lambda rows, axes: time_drawing(rows, axes, "one"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_for_a_page_is_the_page_s_own(name):
    svg = DRAWINGS[name](ROWS, AXES)
    page = Markup(f"<div>{svg}</div>")
    assert not [a for _, a in page.elements if {"style", "xmlns", "onclick"} & set(a)]
    assert not {"style", "metadata", "script", "image"} & {tag for tag, _ in page.elements}
    assert "http" not in svg and "url(" not in svg
    known = ("var(--", "none")
    for _, attributes in page.elements:
        assert attributes.get("stroke", "none").startswith(known), attributes
        assert attributes.get("fill", "none").startswith(known), attributes
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids)) and all(one.startswith("one-") for one in ids)
    assert {a["href"][1:] for a in page.all("use")} == set(ids)
    shapes = [a["class"] for a in page.all("div") if "class" in a]
    assert shapes == ["wide", "narrow"]
    assert all(a["aria-hidden"] == "true" for a in page.all("svg"))


def test_every_point_of_a_drawing_says_what_it_is():
    titles = Markup(f"<div>{DRAWINGS['perplexity'](ROWS, AXES)}</div>").text("title")
    for title in ("group=layer: 6.00 at sparsity 0.5", "dense: 4.00 at sparsity 0.7"):
        assert titles.count(title) == 2  # in either shape
    assert "group=layer: 4.0 s at sparsity 0.5" in DRAWINGS["time"](ROWS, AXES)


def test_no_name_is_more_than_text_in_a_drawing(tmp_path):
    names = ["<img src=x>", "$x^$", "_under & over", "a\nb"]
    rows = [
        {**r, "strategy.group": f"{name}{r['strategy.group']}"}
        for name, r in zip(names, ROWS[::2], strict=True)
    ]
    for draw in DRAWINGS.values():
        found = Markup(f"<div>{draw(rows, AXES)}</div>")
        assert not found.all("img")
        words = " ".join(found.text("svg").split())
        for one in rows:
            assert all(part in words for part in one["strategy.group"].split())
    plot_sweep(rows, AXES, " ".join(names), tmp_path)


def test_names_of_ticks_that_would_overlap_are_left_out():
    many = [{**r, "strategy.group": f"a-long-name-{n:02}"} for n in range(30) for r in ROWS[:1]]
    axes = Axes(("strategy.group",), ())
    wide, narrow = perplexity_drawing(many, axes, "x", "one").split('class="narrow"')
    shown = [len(set(re.findall(r">a-long-name-(\d+)<", one))) for one in (wide, narrow)]
    assert 10 > shown[0] > shown[1] >= 1


def test_every_method_can_be_told_from_the_others():
    for count in (6, 18):
        rows = [{**r, "strategy.group": f"g{n:02}"} for n in range(count) for r in ROWS]
        styles = _Drawn.of(rows, AXES, "x").styles
        assert len(set(styles.values())) == count
        assert {colour for colour, _, _ in styles.values()} == set(COLOURS)


SETTINGS = Axes(("strategy", "strategy.decode", "pruner"), ("sparsity",))


def setting(strategy: str, decode: str, sparsity: str, seed: str, pruned: float) -> Row:
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
        EXCESS: math.log(2 * pruned / 4.0),
        UP: 3e6 + int(seed) * 1e6 if strategy == "fedprllm" else 1e4,
        DOWN: 1e9,
    }


RUNS = [
    setting(strategy, decode, sparsity, seed, base * 10 * float(sparsity) + int(seed))
    for strategy, decode, base in (
        ("fedprllm", "false", 2.0),
        ("fedprllm", "true", 1.5),
        ("fedstats", "false", 1.0),
    )
    for sparsity in ("0.5", "0.7")
    for seed in ("0", "2")
]


def test_a_point_for_each_setting_with_the_keys_that_vary():
    here = [r for r in RUNS if r["sparsity"] == "0.5"]
    found = costs(here, SETTINGS.rows, X)
    assert [point.label for point in found] == [
        "fedprllm decode=false",
        "fedprllm decode=true",
        "fedstats decode=false",
    ]
    first = found[0]
    assert (first.megabytes, first.mean, first.low, first.high) == (4.0, 11.0, 10.0, 12.0)
    assert costs(here, SETTINGS.rows, "perplexity.geometric mean.pruned")[0].mean == 22.0
    assert found[2].megabytes == pytest.approx(0.01)


def test_a_key_that_a_setting_does_not_have_says_nothing_of_it():
    rows = [
        {k: v for k, v in r.items() if k != "strategy.decode" or r["strategy"] == "fedprllm"}
        for r in RUNS
    ]
    labels = [point.label for point in costs(rows, SETTINGS.rows, X)]
    assert labels == ["fedprllm decode=false", "fedprllm decode=true", "fedstats"]


@pytest.mark.parametrize("value", ["true", "null", "none", "0.5"])
def test_what_says_nothing_by_itself_comes_with_its_key(value):
    rows = [{**r, "reconstruct": value if r["strategy"] == "fedstats" else "fedavg"} for r in RUNS]
    labels = {point.label for point in costs(rows, ("strategy", "reconstruct"), X)}
    assert labels == {"fedprllm fedavg", f"fedstats reconstruct={value}"}


def test_collapsed_settings_have_no_point():
    lost = [{**r, "perplexity.x.pruned": float("inf")} for r in RUNS if r["strategy"] == "fedstats"]
    kept = [r for r in RUNS if r["strategy"] != "fedstats"]
    assert len(costs([*kept, *lost], ["strategy"], X)) == 1
    assert costs(kept, [], X)[0].label == "all"


def test_both_files_of_bytes_show_every_label_in_every_column(tmp_path):
    png, svg = plot_bytes(RUNS, SETTINGS, "a title", tmp_path)
    assert (png.name, svg.name) == ("bytes.png", "bytes.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    for label in ("fedprllm decode=true", "fedstats decode=false"):
        assert text.count(f"<!-- {label} -->") == 2
    assert "<!-- perplexity (geometric mean) -->" in text
    assert "<!-- sparsity 0.7 -->" in text
    assert plot_bytes(RUNS, SETTINGS, "a title", tmp_path)[1].read_text() == text


@pytest.mark.parametrize(
    ("rows", "axes"),
    [
        (RUNS[:1], Axes((), ())),
        (RUNS, Axes(("sparsity",), ())),
        ([{**r, "perplexity.x.pruned": None} for r in RUNS], SETTINGS),
        ([{**r, UP: 0.0} for r in RUNS], SETTINGS),
    ],
)
def test_odd_sweeps_are_drawn(tmp_path, rows, axes):
    for path in plot_bytes(rows, axes, "a title", tmp_path):
        assert path.stat().st_size > 1000


def test_the_frontier_has_every_setting_with_its_own_bytes(tmp_path):
    here = [r for r in RUNS if r["sparsity"] == "0.5"]
    first, second, third = costs(here, SETTINGS.rows, EXCESS)
    logs = [math.log(2 * pruned / 4.0) for pruned in (10.0, 12.0)]
    assert (first.mean, first.low, first.high) == pytest.approx((sum(logs) / 2, *logs))
    assert (first.megabytes, third.megabytes) == (4.0, 0.01)
    series = frontier_series(RUNS, SETTINGS)
    assert [one.label for one in series] == [first.label, second.label, third.label]
    assert [(p.x, p.megabytes) for p in series[2].points] == [("0.5", 0.01), ("0.7", 0.01)]
    text = plot_frontier(RUNS, SETTINGS, "a title", tmp_path)[1].read_text()
    assert text.count("<!-- fedstats decode=false -->") == 2
    assert "<!-- log-perplexity over the dense model's -->" in text
    titles = Markup(f"<div>{frontier_drawing(RUNS, SETTINGS, 'one')}</div>").text("title")
    assert f"fedprllm decode=false: {first.mean:.4f} for 4 MB 0.5" in titles


def test_nothing_beats_what_is_joined():
    def point(megabytes: float, mean: float) -> Cost:
        return Cost("", mean, mean, mean, megabytes)

    best = [point(0.1, 0.5), point(1.0, 0.2), point(9.0, 0.1)]
    beaten = [point(0.1, 0.6), point(0.2, 0.5), point(2.0, 0.3), point(9.5, 0.1)]
    assert unbeaten([*beaten, *reversed(best)]) == best
    assert unbeaten([]) == []


@pytest.mark.parametrize("excess", [0.0, -0.01])
def test_a_model_better_than_the_dense_one_has_a_place(tmp_path, excess):
    rows = [{**r, EXCESS: excess} if r["sparsity"] == "0.5" else r for r in RUNS]
    for path in plot_frontier(rows, SETTINGS, "a title", tmp_path):
        assert path.stat().st_size > 1000
    assert f": {excess:.4f} for" in frontier_drawing(rows, SETTINGS, "one")


def test_one_data_set_is_drawn_by_itself(tmp_path):
    alone = [{k: v for k, v in r.items() if "geometric" not in k} for r in RUNS]
    assert "<!-- perplexity (x) -->" in plot_bytes(alone, SETTINGS, "t", tmp_path)[1].read_text()


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
def test_labels_stand_apart_and_inside(heights, gap, wanted):
    assert spread_out(heights, gap) == pytest.approx(wanted)


def test_nothing_lies_over_the_points():
    panel = Figure().subplots()
    here = [r for r in RUNS if r["sparsity"] == "0.5"]
    _labelled(panel, costs(here, SETTINGS.rows, X), [4.0])
    assert panel.get_legend() is None
    labels = [text for text in panel.texts if text.get_text()]
    assert {"dense", "fedstats decode=false"} <= {text.get_text() for text in labels}
    assert all(text.get_position()[0] > 1 for text in labels)  # beside the panel


def test_only_who_draws_waits_for_the_library():
    asked = "import sys, fedprune.cli, fedprune.report.page, fedprune.report.figures;"
    asked += "sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0
