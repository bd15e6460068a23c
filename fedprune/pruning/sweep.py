"""Column after column a linear is pruned or quantised, and those to the right make up for the loss.

With ``H^-1 = U^T U`` (`fedprune.pruning.hessian`), a weight that becomes q leaves the error
``(w - q) / U_jj``, which times the rest of row j of U is taken off the later weights of its matrix
row: the optimal brain surgeon's update in the order of the columns. SparseGPT (arXiv 2301.00774)
chooses which weights become zero, GPTQ (arXiv 2210.17323) what the others are rounded to, and
SparseGPT's section 3.5 does both in one sweep.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config.pattern import pruned_count
from fedprune.jit import jit
from fedprune.pruning import selection, selection_kernels
from fedprune.pruning.grid import Fit, Grid, fit, steps
from fedprune.pruning.groups import MaskSpec


@dataclass(frozen=True)
class Codes:
    """What a sweep quantises to; scales and zeros are chosen when their group is reached."""

    grid: Grid  # bits, groups and symmetry
    dtype: torch.dtype  # the weight's type, which scales have
    fit: Fit  # scales and zeros; written by the sweep unless `groups` is given
    codes: Tensor  # int8, shape (d_out, d_in); written by the sweep
    # where the columns are not in their own order: the group of each, int64, shape (d_in,), and
    # `fit` is ready
    groups: Tensor | None = None

    @classmethod
    def empty(cls, grid: Grid, dtype: torch.dtype, weights: Tensor) -> "Codes":
        """Return room for the codes of a matrix."""
        rows, columns = weights.shape
        scales = weights.new_ones(rows, columns // grid.width(columns))
        codes = torch.zeros_like(weights, dtype=torch.int8)
        return cls(grid, dtype, Fit(scales, torch.zeros_like(scales)), codes)


@dataclass(frozen=True)
class Sweep:
    """The state of one linear; matrices are (d_out, d_in) and contiguous."""

    weights: Tensor  # float32; what is changed, and in the end the result
    keep: Tensor  # bool, all true; in the end the survivors
    upper: Tensor  # the factor, float32, shape (d_in, d_in), contiguous
    spec: MaskSpec  # what the mask must be
    codes: Codes | None = None  # what survivors are rounded to; None leaves them

    def run(self, block_size: int) -> None:
        """Go over all columns.

        `block_size`: columns whose mask is chosen at once, and whose errors later columns are told
        together; rounded up to a multiple of M of an N:M pattern, and of a group that shares scales
        (unless that is a whole row).
        """
        columns = self.weights.shape[1]
        group = self.codes.grid.width(columns) if self.codes else columns
        step = group if group < columns else 1
        size = math.lcm(self.spec.pattern.m or 1, step)
        width = -(-block_size // size) * size
        for start in range(0, columns, width):
            stop = min(start + width, columns)
            if self.spec.sparsity and not self.spec.pattern.structured:
                self.keep[:, start:stop] = self._survivors(start, stop)
            errors = self.weights.new_empty(len(self.weights), stop - start)
            # Scales of a group are taken of weights that make up for all columns before it.
            chooses = self.codes is not None and self.codes.groups is None
            part = step if step > 1 and chooses else width
            for first in range(start, stop, part):
                last = min(first + part, stop)
                self._choose_scales(first, group)
                own = errors[:, first - start : last - start]
                if selection.runs_compiled(self.weights):
                    self._eliminate_compiled(own, first, last)
                else:
                    self._eliminate_by_columns(own, first, last)
                self.weights[:, last:stop].addmm_(own, self.upper[first:last, last:stop], alpha=-1)
            self.weights[:, stop:].addmm_(errors, self.upper[start:stop, stop:], alpha=-1)

    def _choose_scales(self, first: int, size: int) -> None:
        """Choose the scales of the group that starts at a column, if one does."""
        codes = self.codes
        if codes is None or codes.groups is not None or first % size:
            return
        part = self.weights[:, first : first + size].contiguous()
        # What rounding costs once later columns have made up for it.
        costs = self.upper.diagonal()[first : first + size].square().reciprocal()
        found = fit(part[:, None], (costs / costs.mean())[None], codes.grid, codes.dtype)
        codes.fit.scales[:, first // size] = found.scales[:, 0]
        codes.fit.zeros[:, first // size] = found.zeros[:, 0]

    def _survivors(self, start: int, stop: int) -> Tensor:
        """Prune the lowest scores of a block: as many as bring those so far to their count."""
        sparsity, rows = self.spec.sparsity, len(self.weights)
        scores = self._scores(start, stop)
        if self.spec.group == "column":
            groups, before, after = scores.t(), 0, rows
        elif self.spec.group == "row":
            groups, before, after = scores, start, stop
        else:
            groups, before, after = scores.reshape(1, -1), rows * start, rows * stop
        count = pruned_count(after, sparsity) - pruned_count(before, sparsity)
        compiled = selection.runs_compiled(groups)
        choose = selection_kernels.prune_count if compiled else selection.prune_count
        keep = choose(groups, count)
        return keep.t() if self.spec.group == "column" else keep.reshape(scores.shape)

    def _scores(self, start: int, stop: int) -> Tensor:
        return self.weights[:, start:stop].abs() * self.upper.diagonal()[start:stop].reciprocal()

    def _group(self, column: int) -> int:
        """Return which scale of a row a column has."""
        assert self.codes is not None
        if self.codes.groups is not None:
            return int(self.codes.groups[column])
        return column * self.codes.fit.scales.shape[1] // self.weights.shape[1]

    def _eliminate_by_columns(self, errors: Tensor, start: int, stop: int) -> None:
        """Go over columns with tensor operations: the definition, and the path of devices."""
        size = self.spec.pattern.m
        for j in range(start, stop):
            if size and j % size == 0:
                group = slice(j, j + size)
                self.keep[:, group] = selection.prune_lowest(self._scores(j, j + size), self.spec)
            column, kept, error = self.weights[:, j], self.keep[:, j], errors[:, j - start]
            value = column
            if self.codes is not None:
                found, half = self.codes.fit, self.codes.grid.half
                scale, zero = found.scales[:, self._group(j)], found.zeros[:, self._group(j)]
                whole = steps(column, scale, zero, half).masked_fill_(~kept, 0.0)
                self.codes.codes[:, j] = (whole + zero).to(torch.int8)
                value = whole * scale
            value = value.masked_fill(~kept, 0.0)
            error.copy_((column - value) / self.upper[j, j])
            column.copy_(value)
            self.weights[:, j + 1 : stop].addr_(error, self.upper[j, j + 1 : stop], alpha=-1)

    def _eliminate_compiled(self, errors: Tensor, start: int, stop: int) -> None:
        half, scales, zeros = 0, _NOTHING, _NOTHING
        whole = np.empty((0, 0), np.int8)
        if self.codes is not None:
            places = [self._group(j) for j in range(start, stop)]
            half, whole = self.codes.grid.half, self.codes.codes.numpy()
            scales = self.codes.fit.scales.t()[places].contiguous().numpy()
            zeros = self.codes.fit.zeros.t()[places].contiguous().numpy()
        eliminate(
            self.weights.numpy(),
            errors.numpy(),
            self.keep.numpy(),
            self.upper[start:stop, start:stop].contiguous().numpy(),
            (start, self.spec.pattern.n or 1, self.spec.pattern.m or 1),
            (whole, scales, zeros, half),
        )


_NOTHING = np.empty((0, 0), np.float32)


_TILE = 64  # rows; the errors of a tile and of 128 columns are 32 KB


@jit
def eliminate(
    weights: NDArray[np.float32],
    errors: NDArray[np.float32],
    keep: NDArray[np.bool_],
    upper: NDArray[np.float32],
    place: tuple[int, int, int],
    rounding: tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32], int],
) -> None:
    """Zero or round the weights of a block and let its later columns make up for each.

    `weights`: the whole matrix, shape (d_out, d_in), C-contiguous; changed within the block.
    `errors`: shape (d_out, width); receives ``(w - q) / U_jj``. `keep`: shape (d_out, d_in); the
    survivors. Written by an N:M pattern, else read. `upper`: the factor's diagonal block, shape
    (width, width). `place`: (start, n, m): the block's first column; n survive of every m columns,
    chosen when they are reached; m divides the width. n = m = 1 where `keep` is given. `rounding`:
    (codes, scales, zeros, half). Survivors become codes, int8, shape (d_out, d_in), from minus
    `half` to one below it, with the scales and zeros of each column of the block, float32, shape
    (width, d_out). With a `half` of 0 they stay as they are.
    """
    start, least, size = place
    rows, width = weights.shape[0], upper.shape[0]
    columns = np.zeros((width, _TILE), np.float32)  # of the tile, as they are when visited
    tile_errors = np.zeros((width, _TILE), np.float32)
    ranks = np.empty(_TILE, np.int32)
    codes, scales, zeros, half = rounding
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
                _choose(columns[group:end], diagonal, size - least, ranks, kept)
            for j in range(group, end):
                _make_up(columns[j], tile_errors[group:j], upper[group:j, j])
                kept, part = keep[first:last, start + j], slice(first, last)
                if half == 0:
                    _prune(columns[j], kept, upper[j, j], tile_errors[j])
                else:
                    grid = (scales[j, part], zeros[j, part], half)
                    _round(
                        columns[j],
                        kept,
                        grid,
                        upper[j, j],
                        (codes[part, start + j], tile_errors[j]),
                    )
                for row in range(first, last):
                    weights[row, start + j] = columns[j, row - first]
                    errors[row, j] = tile_errors[j, row - first]


@jit
def _prune(
    column: NDArray[np.float32],
    keep: NDArray[np.bool_],
    pivot: np.float32,
    errors: NDArray[np.float32],
) -> None:
    """Zero what is not kept of one column, and write its errors."""
    for row in range(keep.size):
        error = np.float32(0)
        if not keep[row]:
            error = column[row] / pivot
            column[row] = np.float32(0)
        errors[row] = error


@jit
def _round(
    column: NDArray[np.float32],
    keep: NDArray[np.bool_],
    grid: tuple[NDArray[np.float32], NDArray[np.float32], int],
    pivot: np.float32,
    written: tuple[NDArray[np.int8], NDArray[np.float32]],
) -> None:
    """Zero what is not kept of one column, round the rest, and write codes and errors."""
    scales, zeros, half = grid
    codes, errors = written
    low, high = np.float32(-half), np.float32(half - 1)
    for row in range(keep.size):
        value, scale, zero = column[row], scales[row], zeros[row]
        steps = min(max(np.rint(value / scale) + zero, low), high) - zero
        if not keep[row]:
            steps = np.float32(0)
        codes[row] = np.int8(steps + zero)
        column[row] = steps * scale
        errors[row] = (value - column[row]) / pivot


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
