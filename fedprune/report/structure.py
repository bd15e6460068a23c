"""Where the zeros are, and how many clients stand behind each block."""

from collections.abc import Mapping
from typing import Any

from fedprune.report.charts import Column, HeatMap, chart, column_chart
from fedprune.report.linears import Grid, by_block, reporters
from fedprune.report.markup import Html, join
from fedprune.report.tables import folded, table
from fedprune.results import text


def sparsity(results: Mapping[str, Any]) -> Html:
    """Return the map of sparsity, and the clients of each block where they differ."""
    found = results["sparsity"]
    aid = "Columns are blocks, rows kinds of linear; the stronger the colour, the more zeros."
    zeros = grid_chart(
        "Zeros by block and kind of linear", aid, "Sparsity", by_block(found["linears"])
    )
    behind = reporters(found)
    return join([zeros, _reporters(behind) if len(set(behind.values())) > 1 else None])


def grid_chart(title: str, aid: str, what: str, grid: Grid) -> Html:
    """Return a heat map of a figure by kind and block, with its table."""
    known = [value for row in grid.cells for value in row if value is not None]
    if not known:
        return Html()
    ends = f"from {text.percent(min(known))} to {text.percent(max(known))}"
    label = f"{what} by block and kind of linear, {ends}"
    blocks = [str(block) for block in grid.blocks]
    heat = HeatMap(label, grid.kinds, blocks, grid.cells, text.percent)
    rows = [
        [f"Block {block}", *(text.percent(value, 2) for value in cells)]
        for block, cells in zip(blocks, zip(*grid.cells, strict=True), strict=True)
    ]
    data = table(f"{what} by block", ["Block", *grid.kinds], rows)
    return chart(title, aid, heat.draw(), folded("Data", data))


def _reporters(behind: Mapping[int, int]) -> Html:
    columns = [
        Column(str(block), clients, str(clients), "" if clients else "bad")
        for block, clients in behind.items()
    ]
    label = f"Clients by block, from {min(behind.values())} to {max(behind.values())}"
    rows = [[f"Block {block}", str(clients)] for block, clients in behind.items()]
    return chart(
        "Clients behind each block",
        "Replies that were counted for a block; few clients make a block's result theirs.",
        column_chart(label, columns, lambda value: f"{value:g}"),
        folded("Data", table("Clients by block", ["Block", "Clients"], rows)),
    )
