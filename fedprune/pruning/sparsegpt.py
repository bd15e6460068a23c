"""SparseGPT: prune column after column, and let the columns to the right make up for the loss.

Frantar and Alistarh, arXiv 2301.00774, algorithm 1, with exact counts. Columns are visited in
order; a weight's score is ``|w| / U_jj``, the root of what its removal costs once the later weights
of its row have made up for it. The mask of a block of columns is chosen when the block is reached,
from weights that already make up for all that was pruned before.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config.pattern import pruned_count
from fedprune.errors import ModelError
from fedprune.jit import jit
from fedprune.pruning import selection, selection_kernels
from fedprune.pruning.groups import NOT_FINITE, MaskSpec, check_divides
from fedprune.pruning.hessian import Factor
from fedprune.pruning.pruner import second_moments, sparse_change
from fedprune.pruning.statistics import Statistic
from fedprune.wire.changes import SparseWeight


@dataclass(frozen=True)
class _Sweep:
    """The state of one linear; matrices are (d_out, d_in) and contiguous.

    Parameters
    ----------
    weights : Tensor
        float32; what is pruned, and in the end the result.
    keep : Tensor
        bool; the survivors.
    errors : Tensor
        float32, shape (d_out, block size); of the block, ``w / U_jj`` of every weight that was
        pruned, zero of a survivor.
    upper : Tensor
        The factor, float32, shape (d_in, d_in).
    spec : MaskSpec
        What the mask must be.
    """

    weights: Tensor
    keep: Tensor
    errors: Tensor
    upper: Tensor
    spec: MaskSpec


def sparsegpt(
    weight: Tensor, factor: Factor, spec: MaskSpec, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Return the pruned weight and its mask.

    Parameters
    ----------
    weight : Tensor
        Shape (d_out, d_in), any floating dtype, on the factor's device; not changed.
    factor : Factor
        Of the linear's inputs (see `fedprune.pruning.hessian.inverse_factor`). The weights of
        dead inputs become zero.
    spec : MaskSpec
        Sparsity, pattern and comparison group. The groups 'layer' and 'row' compare the weights of
        one block of columns: the blocks up to any one together lose exactly
        ``pruned_count(their weights, sparsity)``. Of equal scores the lower index is pruned first.
    block_size : int
        Columns of a block; rounded up to a multiple of M for an N:M pattern, which chooses the
        mask of M columns when they are reached.

    Returns
    -------
    tuple[Tensor, Tensor]
        The new weight, float32, exactly zero where pruned, and the mask, True = survives. The mask
        has `fedprune.pruning.groups.expected_survivors`.

    Raises
    ------
    ModelError
        If a weight is NaN or infinite, or an N:M pattern does not divide d_in.
    """
    check_divides(spec.pattern, weight.shape[1])
    size = spec.pattern.m or 1
    width = -(-block_size // size) * size
    weights = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    weights.copy_(weight.detach())
    weights[:, factor.dead] = 0.0
    keep = torch.ones_like(weights, dtype=torch.bool)
    upper = factor.upper.contiguous()
    for start in range(0, weights.shape[1], width):
        stop = min(start + width, weights.shape[1])
        errors = weights.new_empty(len(weights), stop - start)
        _prune_block(_Sweep(weights, keep, errors, upper, spec), start, stop)
        weights[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    if not bool(torch.isfinite(weights).all()):
        raise ModelError(NOT_FINITE)
    return weights, keep


def _prune_block(sweep: _Sweep, start: int, stop: int) -> None:
    """Choose the mask of a block of columns, prune it, and leave its errors."""
    if not sweep.spec.pattern.structured:
        sweep.keep[:, start:stop] = _survivors(sweep, start, stop)
    if selection.runs_compiled(sweep.weights):
        _eliminate_compiled(sweep, start, stop)
    else:
        _eliminate(sweep, start, stop)


def _survivors(sweep: _Sweep, start: int, stop: int) -> Tensor:
    """Prune the lowest scores of a block: as many as bring the columns so far to their count."""
    sparsity, rows = sweep.spec.sparsity, len(sweep.weights)
    scores = _scores(sweep, start, stop)
    if sweep.spec.group == "column":
        groups, before, after = scores.t(), 0, rows
    elif sweep.spec.group == "row":
        groups, before, after = scores, start, stop
    else:
        groups, before, after = scores.reshape(1, -1), rows * start, rows * stop
    count = pruned_count(after, sparsity) - pruned_count(before, sparsity)
    keep = _prune_count(groups, count)
    return keep.t() if sweep.spec.group == "column" else keep.reshape(scores.shape)


def _prune_count(groups: Tensor, count: int) -> Tensor:
    if selection.runs_compiled(groups):
        return selection_kernels.prune_count(groups, count)
    return selection.prune_count(groups, count)


def _scores(sweep: _Sweep, start: int, stop: int) -> Tensor:
    return sweep.weights[:, start:stop].abs() * sweep.upper.diagonal()[start:stop].reciprocal()


def _eliminate(sweep: _Sweep, start: int, stop: int) -> None:
    """Prune a block with tensor operations: the definition, and the path where no other is."""
    size = sweep.spec.pattern.m
    for j in range(start, stop):
        if size and j % size == 0:
            group = slice(j, j + size)
            sweep.keep[:, group] = selection.prune_lowest(_scores(sweep, j, j + size), sweep.spec)
        column, kept, error = sweep.weights[:, j], sweep.keep[:, j], sweep.errors[:, j - start]
        error.copy_(column / sweep.upper[j, j]).masked_fill_(kept, 0.0)
        column.masked_fill_(~kept, 0.0)
        sweep.weights[:, j + 1 : stop].addr_(error, sweep.upper[j, j + 1 : stop], alpha=-1)


def _eliminate_compiled(sweep: _Sweep, start: int, stop: int) -> None:
    eliminate(
        sweep.weights.numpy(),
        sweep.errors.numpy(),
        sweep.keep.numpy(),
        sweep.upper[start:stop, start:stop].contiguous().numpy(),
        start,
        (sweep.spec.pattern.n or 1, sweep.spec.pattern.m or 1),
    )


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


@dataclass(frozen=True)
class SparseGptPruner:
    """Prune column by column and let the later columns make up for it.

    SparseGPT (Frantar and Alistarh, arXiv 2301.00774, algorithm 1).

    Parameters
    ----------
    damping : float
        Share of the mean squared input that is added to the diagonal.
    block_size : int
        Columns whose mask is chosen at once.
    """

    damping: float
    block_size: int
    name: str = "sparsegpt"
    needs: str = "moments"
    updates: bool = True

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> SparseWeight:
        """Return survivors with new values (see `Pruner.prune`)."""
        found = second_moments(self.name, weight, stats)
        new, mask = sparsegpt(weight, found.factor(self.damping), spec, self.block_size)
        return sparse_change(weight, new, mask)
