"""Results of many runs as rows, pivots, Markdown and CSV."""

import csv
import io
import math
import statistics
from typing import Any

import pytest

from fedprune.results.sweep import (
    DOWN,
    EXCESS,
    UP,
    Axes,
    Pivot,
    Row,
    all_pivots,
    csv_text,
    datasets,
    make_row,
    markdown,
    mean_text,
    number_text,
    perplexity_pivot,
)

AXES = Axes(("strategy.group",), ("sparsity",))


def results(seed: int = 0, pruned: float = 9.0, **figures: Any) -> dict[str, Any]:
    return {
        "seed": seed,
        "sparsity": {"target": 0.5, "overall": 0.4999},
        "perplexity": {
            "a.b": {"dense": 7.0, "pruned": pruned, "centralized": None, "local_only": None}
            | figures
        },
        "clients": [{}, {}],
        "seconds": {"total": 3.0, "prune": 1.0},
        "ledger": {
            "entries": [
                {"phase": "prune", "bytes_up": 100, "bytes_down": 10},
                {"phase": "prune", "bytes_up": 200, "bytes_down": 10},
                {"phase": "evaluate", "bytes_up": 999, "bytes_down": 999},
            ]
        },
    }


LOCAL = {"mean": 10.0, "best": 9.5, "worst": 10.5, "clients": {"x": 10.0}}


def test_a_row_has_its_run_s_figures_and_the_baselines_of_another():
    baseline = results(centralized=8.0, local_only=LOCAL)
    row = make_row({"strategy.group": "row"}, results(), baseline)
    assert row["strategy.group"] == "row"
    assert (row["sparsity"], row["seed"]) == ("0.5", "0")
    assert row["perplexity.a.b.pruned"] == 9.0
    assert row["perplexity.a.b.centralized"] == 8.0
    assert row["perplexity.a.b.local_only.worst"] == 10.5
    assert (row[UP], row[DOWN]) == (150.0, 10.0)
    assert datasets([row]) == ["a.b"]


def test_several_data_sets_have_summaries_of_run_and_baseline():
    def both(**figures: Any) -> dict[str, Any]:
        found = results(**figures)
        found["perplexity"]["other"] = found["perplexity"]["a.b"] | {"dense": 28.0, "pruned": 36.0}
        return found

    row = make_row({}, both(), both(centralized=8.0, local_only=LOCAL))
    assert datasets([row])[:4] == ["a.b", "other", "geometric mean", "worst data set"]
    assert row["perplexity.geometric mean.dense"] == pytest.approx(14.0)
    assert row["perplexity.geometric mean.pruned"] == pytest.approx(18.0)
    assert row["perplexity.geometric mean.centralized"] == pytest.approx(8.0)
    assert row["perplexity.geometric mean.local_only.worst"] == pytest.approx(10.0)
    assert row["perplexity.worst data set.pruned"] == 36.0
    titles = [pivot.title for pivot in all_pivots([row], Axes((), ()))]
    assert titles[2:6] == [
        "Perplexity (geometric mean)",
        "Perplexity (worst data set)",
        "Perplexity (worst data set, as a multiple of dense)",
        "Log-perplexity over the dense model's",
    ]
    assert row[EXCESS] == pytest.approx(math.log(18.0 / 14.0))


@pytest.mark.parametrize("figures", [{"dense": None}, {"pruned": None}, {"pruned": math.inf}])
def test_without_both_perplexities_there_is_no_excess(figures):
    found = results()
    found["perplexity"]["a.b"] |= figures
    row = make_row({}, found, None)
    assert row[EXCESS] is None
    assert "over the dense" not in " ".join(p.title for p in all_pivots([row], Axes((), ())))


def test_missing_baselines_stay_empty():
    row = make_row({}, results(), None)
    assert row["perplexity.a.b.centralized"] is None
    line = csv_text([row]).splitlines()[1].split(",")
    assert "" in line


def test_agreement_with_the_dense_model_has_columns():
    found = results() | {"fidelity": {"text": {"pruned": {"kl": 0.25, "top1": 0.5}}}}
    row = make_row({}, found, None)
    assert (row["fidelity.text.pruned.kl"], row["fidelity.text.pruned.top1"]) == (0.25, 0.5)
    assert "fidelity.mean.pruned.kl" not in row
    found["fidelity"]["law"] = {"pruned": {"kl": 0.75, "top1": 0.25}}
    row = make_row({}, found, None)
    assert (row["fidelity.mean.pruned.kl"], row["fidelity.mean.pruned.top1"]) == (0.5, 0.375)
    worst = "fidelity.worst data set.pruned"
    assert (row[f"{worst}.kl"], row[f"{worst}.top1"]) == (0.75, 0.25)


def test_csv_reads_back():
    rows = [
        make_row({"k": 'a,"b"'}, results(), None),
        make_row({"other": "1"}, results(seed=1), None),
    ]
    found = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert found[0]["k"] == 'a,"b"' and found[0]["other"] == ""
    assert found[1]["seed"] == "1" and float(found[1]["perplexity.a.b.pruned"]) == 9.0


def table() -> list[Row]:
    rows = []
    for group, shift in (("layer", 0.0), ("row", 1.0)):
        for sparsity in ("0.5", "0.6"):
            for seed in ("0", "1", "2"):
                value = 10 * float(sparsity) + int(seed) / 10
                rows.append(
                    {
                        "strategy.group": group,
                        "sparsity": sparsity,
                        "seed": seed,
                        "perplexity.x.dense": 4.0,
                        "perplexity.x.centralized": value,
                        "perplexity.x.pruned": value + shift,
                        UP: 1500.0,
                        DOWN: 500.0,
                    }
                )
    return rows


def test_pivot_of_means_and_deviations():
    pivot = perplexity_pivot(table(), AXES, "x")
    assert pivot.header == ("model", "strategy.group", "sparsity 0.5", "sparsity 0.6")
    spread = f"{statistics.stdev([0.0, 0.1, 0.2]):.2f}"
    assert pivot.lines == (
        ("dense", "", "4.00", "4.00"),
        ("centralised", "", f"5.10 ± {spread}", f"6.10 ± {spread}"),
        ("federated", "layer", f"5.10 ± {spread}", f"6.10 ± {spread}"),
        ("federated", "row", f"6.10 ± {spread}", f"7.10 ± {spread}"),
    )


def test_a_baseline_has_a_line_for_each_key_it_depends_on():
    rows = [
        {**row, "pruner.group": group, "perplexity.x.centralized": factor}
        for row in table()
        for group, factor in (("row", 1.0), ("layer", 2.0))
    ]
    axes = Axes(("pruner.group", "strategy.group"), ("sparsity",))
    lines = [line for line in perplexity_pivot(rows, axes, "x").lines if line[0] == "centralised"]
    assert lines == [
        ("centralised", "row", "", "1.00", "1.00"),
        ("centralised", "layer", "", "2.00", "2.00"),
    ]


def test_a_run_that_failed_leaves_a_gap():
    rows = [r for r in table() if (r["strategy.group"], r["sparsity"]) != ("row", "0.6")]
    assert perplexity_pivot(rows, AXES, "x").lines[-1][2:] == ("6.10 ± 0.10", "–")


def test_bytes_and_no_columns():
    pivots = all_pivots(table(), Axes(("strategy.group",), ()))
    assert [pivot.title for pivot in pivots][1:] == ["Sent by a client", "Received by a client"]
    assert pivots[1].header == ("model", "strategy.group", "all")
    assert pivots[1].lines[0] == ("federated", "layer", "1.5 kB")


def test_markdown():
    text = markdown(Pivot("T", 1, ("a", "b"), (("x|y", "1"),)))
    assert text == "## T\n\n| a | b |\n| --- | --- |\n| x\\|y | 1 |\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(9.005, "9.01"), (999.0, "999.00"), (20528.41, "2.05e+04"), (float("inf"), "inf")],
)
def test_numbers(value, text):
    assert number_text(value) == text


def test_equal_values_have_no_spread():
    assert mean_text([2.0, 2.0]) == "2.00"
    assert mean_text([2.0]) == "2.00"
    assert mean_text([1.0, 3.0]) == "2.00 ± 1.41"
