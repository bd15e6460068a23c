"""Compiled loops of SparseGPT: prune the columns of one block.

Written for numba as `fedprune.pruning.loops` is. Rows share nothing but the factor, so a tile of
rows passes through all columns of the block before the next one, and every operation works on one
column of the tile, which lies in consecutive memory.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit

_TILE = 64  # rows; the errors of a tile and of 128 columns are 32 KB


@jit
def eliminate(
    weights: NDArray[np.float32],
    errors: NDArray[np.float32],
    keep: NDArray[np.bool_],
    upper: NDArray[np.float32],
    start: int,
    pattern: tuple[int, int],
) -> None:
    """Zero the pruned weights of a block and let its later columns make up for each.

    Parameters
    ----------
    weights : NDArray[np.float32]
        The whole matrix, shape (d_out, d_in), C-contiguous; changed within the block.
    errors : NDArray[np.float32]
        Shape (d_out, width); receives ``w / U_jj`` of the pruned, zero of the survivors.
    keep : NDArray[np.bool_]
        Shape (d_out, d_in); the survivors. Written by an N:M pattern, else read.
    upper : NDArray[np.float32]
        The factor's diagonal block, shape (width, width).
    start : int
        First column of the block.
    pattern : tuple[int, int]
        (n, m): n survive of every m columns, chosen when they are reached; m divides the width.
        (1, 1) where `keep` is given.
    """
    rows, width, size = weights.shape[0], upper.shape[0], pattern[1]
    columns = np.zeros((width, _TILE), np.float32)  # of the tile, as they are when visited
    tile_errors = np.zeros((width, _TILE), np.float32)
    ranks = np.empty(_TILE, np.int32)
    for first in range(0, rows, _TILE):
        last = min(first + _TILE, rows)
        for group in range(0, width, size):
            end = group + size
            for j in range(group, end):
                for row in range(first, last):
                    columns[j, row - first] = weights[row, start + j]
                _make_up(columns[j], tile_errors[:group], upper[:group, j])
            if size > 1:
                kept = keep[first:last, start + group : start + end]
                diagonal = np.diag(upper)[group:end]
                _choose(columns[group:end], diagonal, size - pattern[0], ranks, kept)
            for j in range(group, end):
                _make_up(columns[j], tile_errors[group:j], upper[group:j, j])
                for row in range(first, last):
                    value, error = columns[j, row - first], np.float32(0)
                    if not keep[row, start + j]:
                        value, error = np.float32(0), value / upper[j, j]
                    weights[row, start + j] = value
                    errors[row, j] = error
                    tile_errors[j, row - first] = error


@jit
def _make_up(
    column: NDArray[np.float32], errors: NDArray[np.float32], upper: NDArray[np.float32]
) -> None:
    """Correct one column for the errors of columns before it."""
    for k in range(upper.size):
        factor = upper[k]
        for row in range(column.size):
            column[row] -= errors[k, row] * factor


@jit
def _choose(
    columns: NDArray[np.float32],
    diagonal: NDArray[np.float32],
    prune: int,
    ranks: NDArray[np.int32],
    keep: NDArray[np.bool_],
) -> None:
    """Flag, in each row, those with at least `prune` lower scores; equal ones count by index."""
    scores = np.empty_like(columns)
    for j in range(len(columns)):
        scale = np.float32(1) / diagonal[j]
        for row in range(ranks.size):
            scores[j, row] = np.abs(columns[j, row]) * scale
    for j in range(len(columns)):
        ranks[:] = 0
        for k in range(len(columns)):
            for row in range(ranks.size):
                if k < j:
                    ranks[row] += np.int32(scores[k, row] <= scores[j, row])
                else:
                    ranks[row] += np.int32(scores[k, row] < scores[j, row])
        for row in range(len(keep)):
            keep[row, j] = ranks[row] >= prune
