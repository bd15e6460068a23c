"""Figures of linears as a table of kinds by blocks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

_NAME = re.compile(r"(?P<prefix>.+?)\.(?P<block>\d+)\.(?P<kind>.+)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Grid:
    """A figure by kind of linear and block."""

    # names of linears inside a block; those of experts drawn together, their numbers a star
    kinds: list[str]
    blocks: list[int]  # ascending
    # kind by kind, block by block; None where a block has no such linear
    cells: list[list[float | None]]


def by_block(figures: Mapping[str, float | None]) -> Grid:
    """Return the figures of full names like "model.layers.0.mlp.up_proj" as a grid."""
    found: dict[tuple[str, int], list[float]] = {}
    for name, value in figures.items():
        parts = _NAME.fullmatch(name)
        if parts is not None and value is not None:
            kind = _NUMBER.sub("*", parts["kind"])
            found.setdefault((kind, int(parts["block"])), []).append(value)
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    blocks = sorted({block for _, block in found})
    cells = [
        [fmean(found[kind, block]) if (kind, block) in found else None for block in blocks]
        for kind in kinds
    ]
    return Grid(kinds, blocks, cells)


def reporters(results_sparsity: Mapping[str, Mapping[str, int]]) -> dict[int, int]:
    """Return block -> clients whose replies were counted; empty where results do not tell.

    Of an expert that a client's tokens never reached it says nothing, of the block it does.
    """
    grid = by_block(results_sparsity.get("reporters", {}))
    columns = zip(grid.blocks, zip(*grid.cells, strict=True), strict=True)
    return {block: round(max(v for v in cells if v is not None)) for block, cells in columns}
