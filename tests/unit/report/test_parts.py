"""What a run's page is made of: the ledger by round, linears by block, clients, charts by hand."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from fedprune.report.agreement import vote_columns
from fedprune.report.charts import STEPS, Column, ColumnChart, HeatMap
from fedprune.report.clients import clients, split_name
from fedprune.report.cost import rounds
from fedprune.report.linears import by_block, reporters
from fedprune.report.page import environment, prose, render_page
from fedprune.results import text
from fedprune.results.ledger import Entry
from tests.support.markup import Markup
from tests.support.reports import made_up

NAMES = ["'a' (partition 0)", "'b' (partition 1)", "'c' (partition 2)"]


def test_only_code_between_backticks_is_markup():
    assert prose("say `<x>` & go") == "say <code>&lt;x&gt;</code> &amp; go"


def test_rounds_are_sums_over_clients_and_the_slowest_of_them():
    entries = [
        Entry(0, "handshake", "a", 1, 2, 9.0),
        Entry(1, "deliver", "a", 50, 5, 1.0),
        Entry(1, "prune", "a", 10, 20, 3.0, client_seconds=2.0),
        Entry(1, "prune", "b", 11, 21, 4.0, client_seconds=1.0, refused="no"),
    ]
    found = rounds([asdict(entry) for entry in entries])
    assert [one.name for one in found] == [
        *("0 asking nodes who they are", "1 delivering pruned blocks", "1 pruning")
    ]
    last = found[-1]
    assert (last.asked, last.refused, last.bytes_up, last.bytes_down) == (2, 1, 41, 21)
    assert (last.seconds, last.worked) == (4.0, 2.0)


def test_linears_become_a_grid_and_experts_one_kind():
    grid = by_block(
        {
            "model.layers.0.attn.q": 0.1,
            "model.layers.0.mlp.experts.0.w1": 0.2,
            "model.layers.0.mlp.experts.1.w1": 0.4,
            "model.layers.10.attn.q": 0.5,
            "model.layers.2.attn.q": None,
        }
    )
    assert grid.kinds == ["attn.q", "mlp.experts.*.w1"]
    assert grid.blocks == [0, 10]
    assert grid.cells == [[0.1, 0.5], [pytest.approx(0.3), None]]
    assert reporters({"reporters": {"h.0.a": 3, "h.0.b": 3, "h.1.a": 0}}) == {0: 3, 1: 0}
    assert reporters({}) == {}


def page(results):
    return Markup(render_page(results, "", Path("/runs/one")))


def test_one_round_of_pruning_needs_no_charts():
    assert "Time, by round" in page(made_up(NAMES, 2)).text()
    once = page(made_up(NAMES, 1)).text()
    assert "Time, by round" not in once and "Data of all rounds" in once


def test_clients_are_ordered_by_what_was_measured():
    results = made_up(NAMES, 2, alone=False)
    assert "ordered by agreement with the result" in page(results).text()
    alone = page(results | {"agreement": None}).text()
    assert "What clients reach alone was not measured." in alone
    assert "No client took part." in page(results | {"clients": []}).text()


def test_clients_are_gathered_from_all_over_the_results():
    results = made_up(NAMES, lost=[NAMES[1]])
    results["strategy"]["layer_sampling"] = [
        {"clients": {NAMES[0]: [0, 1], NAMES[1]: [0]}},
        {"clients": {NAMES[0]: [1], NAMES[1]: [1]}},
    ]
    first, second, third = clients(results)
    up = [e["bytes_up"] for e in results["ledger"]["entries"] if e["client"] == NAMES[0]]
    assert first.bytes_up == sum(up)
    assert (first.blocks, second.blocks, third.blocks) == (3, 2, None)
    assert (first.left, second.left) == (None, 1)
    assert first.perplexity == results["perplexity"]["text"]["local_only"]["clients"][NAMES[0]]
    assert first.agreement == results["agreement"]["clients"]["result"][NAMES[0]]


def test_a_client_s_name_is_its_site_and_its_partition():
    assert split_name("'a b' (partition 3)") == ("a b", "partition 3")
    assert split_name("partition 3") == ("partition 3", "")


def test_few_votes_have_a_column_each_and_many_are_drawn_together():
    few = vote_columns({"2": [6, 1, 3]})
    assert [(c.label, c.value, c.kind) for c in few] == [
        *(("0", 0.6, ""), ("1", 0.1, "contested"), ("2", 0.3, ""))
    ]
    mixed = vote_columns({"2": [1, 2, 3], "3": [4, 0, 5, 6]})
    assert [(c.label, round(c.value * 21)) for c in mixed] == [
        *(("0%", 5), ("33%", 0), ("50%", 2), ("67%", 5), ("100%", 9))
    ]
    many = vote_columns({"100": [1] * 101, "2": [5, 7, 5]})
    assert len(many) == 22
    assert many[0].value == many[-1].value == pytest.approx(6 / 118)
    assert many[1].label == "≤5%" and many[1].value == pytest.approx(5 / 118)
    assert many[10].label == "≤50%" and many[10].value == pytest.approx(12 / 118)
    assert many[-2].label == "<100%" and many[-2].value == pytest.approx(4 / 118)
    assert sum(column.value for column in many) == pytest.approx(1)


def drawn(macro, chart):
    macros = environment().get_template("macros.html.jinja").module
    return Markup(f"<div>{getattr(macros, macro)(chart)}</div>")


def test_columns_are_as_high_as_their_values():
    columns = [Column("a", 1.0, "one"), Column("b", 4.0, "four"), Column("c", 0.0, "none")]
    rects = drawn("columns", ColumnChart("three columns", columns, str)).all("rect")
    heights = [float(rect["height"]) for rect in rects]
    assert heights[1] == pytest.approx(4 * heights[0], rel=0.01) and heights[2] == 0
    floor = {float(rect["y"]) + float(rect["height"]) for rect in rects}
    assert max(floor) - min(floor) < 0.02


@pytest.mark.parametrize(
    ("cells", "colours"),
    [
        ([0.0, 0.5, 1.0], ["s0", "s3", "s6"]),
        ([0.5, 0.501], ["s6", "s6"]),
        ([0.5, None, 0.5], ["s3", "s3"]),
    ],
)
def test_a_heat_map_s_colours_follow_its_figures(cells, colours):
    found = drawn("heat", HeatMap("a map", ["r"], list("abc")[: len(cells)], [cells], text.percent))
    assert [rect["class"] for rect in found.all("rect")][: len(colours)] == colours
    alike = len(set(filter(None, cells))) == 1
    assert ("All 50.0%" in found.text("p")) == alike
    assert len(found.all("rect")) == len(colours) + (0 if alike else STEPS)


def test_many_rounds_share_columns():
    results = made_up(NAMES, 2)
    one = asdict(Entry(1, "prune", NAMES[0], 10, 1000, 1.0))
    results["ledger"]["entries"] = [{**one, "round": step} for step in range(1, 151)]
    found = page(results)
    assert "3 rounds share a column." in found.text("figure")
    assert re.search(r"148–150: 1\.0 kB", found.text("figure"))
    assert "150 pruning" in found.text("details")


def test_exchanges_of_another_kind_have_columns_of_their_own():
    results = made_up(NAMES, 2)
    assert "Grey" not in page(results).text("figure")
    for phase in ("survey", "<unmask>", "deliver", "evaluate"):
        results["ledger"]["entries"].append(asdict(Entry(9, phase, NAMES[0], 10, 2000, 1.0)))
    found = page(results)
    assert "Grey: surveying, <unmask>." in found.text("figure")
    assert [rect.get("class") for rect in found.all("rect")].count("aside") == 4
    assert "9 evaluating" in found.text("details")
