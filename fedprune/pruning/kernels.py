"""Masks on the CPU: row blocks go to compiled loops, in as many threads as torch uses.

Agrees with `fedprune.pruning.select.prune_lowest` bit for bit, and never holds the scores of a
whole matrix (the column group excepted, which transposes them).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config.count import pruned_count
from fedprune.errors import ModelError
from fedprune.pruning import loops
from fedprune.pruning.spec import NOT_FINITE, MaskSpec, check_divides
from fedprune.wire.masks import BitMask, packed_size

T = TypeVar("T")
Block = NDArray[np.float32]

_BLOCK = 1 << 20  # weights of one task: 4 MB of float32, a few hundred microseconds of work
_LAYER_BLOCK = 1 << 22  # larger where every block carries a histogram


def wanda_mask(weight: Tensor, norms: Tensor, spec: MaskSpec) -> BitMask:
    """Return the mask that prunes the lowest ``|weight| * norms`` of each comparison group.

    Parameters
    ----------
    weight : Tensor
        Shape (d_out, d_in), any floating dtype and strides, on the CPU. Scores are float32.
    norms : Tensor
        Norms of the linear's inputs, float32, shape (d_in,), non-negative.
    spec : MaskSpec
        Sparsity, pattern and comparison group. Equal scores: the lower index is pruned first.

    Raises
    ------
    ModelError
        If a score is NaN or infinite, or an N:M pattern does not divide d_in.
    """
    scale = norms.detach().to(torch.float32).contiguous().numpy()
    weight = weight.detach().contiguous()  # a whole transpose is faster than one by blocks
    d_out, d_in = weight.shape
    bits = np.zeros(packed_size(weight.numel()), dtype=np.uint8)
    if spec.pattern.n is not None and spec.pattern.m is not None:
        check_divides(spec.pattern, d_in)
        n, m = spec.pattern.n, spec.pattern.m
        lanes: loops.Lanes = (np.arange(d_in) % m).astype(np.int32)
        if m <= 256:
            lanes = lanes.astype(np.uint8)
        finite = _each_block(
            weight,
            _BLOCK,
            lambda row, w: loops.prune_groups(w, scale, m - n, lanes, _at(bits, row, w)),
        )
        _check_finite(finite)
    elif spec.group == "row":
        count = pruned_count(d_in, spec.sparsity)
        finite = _each_block(
            weight, _BLOCK, lambda row, w: loops.prune_rows(w, scale, count, _at(bits, row, w))
        )
        _check_finite(finite)
    elif spec.group == "layer":
        _prune_layer(weight, scale, pruned_count(weight.numel(), spec.sparsity), bits)
    else:
        scores = (weight.to(torch.float32).abs() * norms).t()
        rows = MaskSpec(spec.sparsity, spec.pattern, "row")
        columns = torch.from_numpy(mask_from_scores(scores, rows).to_bool())
        return BitMask.from_bool(columns.t().contiguous().numpy())
    return BitMask(bits, (d_out, d_in))


def mask_from_scores(scores: Tensor, spec: MaskSpec) -> BitMask:
    """Return the mask that prunes the lowest scores of each group.

    As `wanda_mask` with norms of one. The sign of a score is not looked at, so that magnitude
    pruning hands in the weights themselves.
    """
    return wanda_mask(scores, torch.ones(scores.shape[1]), spec)


def prune_count(groups: Tensor, count: int) -> Tensor:
    """Return the boolean mask that prunes the `count` lowest scores of each row.

    As `fedprune.pruning.select.prune_count`, for few rows or short ones: in one thread.

    Parameters
    ----------
    groups : Tensor
        Scores, float32, shape (groups, size), on the CPU.
    count : int
        At most the size of a group.

    Raises
    ------
    ModelError
        If a score is NaN or infinite.
    """
    scores = groups.contiguous().numpy()
    bits = np.empty(packed_size(scores.size), dtype=np.uint8)
    ones = np.ones(scores.shape[1], dtype=np.float32)
    _check_finite([loops.prune_rows(scores, ones, count, bits)])
    return torch.from_numpy(BitMask(bits, scores.shape).to_bool())


def _prune_layer(
    weight: Tensor, norms: NDArray[np.float32], prune: int, bits: NDArray[np.uint8]
) -> None:
    """Prune the lowest `prune` scores of the matrix by a radix select in two digits."""

    def counted(prefix: int, size: int) -> list[NDArray[np.int32]]:
        def job(_: int, block: Block) -> NDArray[np.int32] | None:
            counts = np.zeros(size, dtype=np.int32)
            return counts if loops.histogram(block, norms, prefix, counts) else None

        found = _each_block(weight, _LAYER_BLOCK, job)
        _check_finite([counts is not None for counts in found])
        return [counts for counts in found if counts is not None]

    upper, left = _digit(counted(loops.ALL, 1 << 16), prune)
    lower_counts = counted(upper, 1 << loops.LOW_BITS)
    lower, left = _digit(lower_counts, left)
    threshold = upper << loops.LOW_BITS | lower
    quotas = _tie_quotas([int(counts[lower]) for counts in lower_counts], left)
    rows = _block_rows(weight, _LAYER_BLOCK)

    def job(row: int, block: Block) -> None:
        loops.prune_below(block, norms, threshold, quotas[row // rows], _at(bits, row, block))

    _each_block(weight, _LAYER_BLOCK, job)


def _digit(histograms: list[NDArray[np.int32]], rank: int) -> tuple[int, int]:
    """Return the digit of the code at this rank (from 0), and its rank among equal digits."""
    below = np.cumsum(np.sum(histograms, axis=0, dtype=np.int64))
    digit = int(np.searchsorted(below, rank, side="right"))
    return digit, rank - (int(below[digit - 1]) if digit else 0)


def _tie_quotas(ties: list[int], prune: int) -> list[int]:
    """Share out the ties that are pruned over the blocks, first blocks first."""
    quotas = []
    for available in ties:
        quotas.append(min(available, prune))
        prune -= quotas[-1]
    return quotas


def _at(bits: NDArray[np.uint8], row: int, block: Block) -> NDArray[np.uint8]:
    """Return the bytes of the mask from a row on; blocks start at whole bytes."""
    return bits[row * block.shape[1] // 8 :]


def _block_rows(weight: Tensor, size: int) -> int:
    """Return the rows of a block of about `size` weights: a multiple of 8, for whole bytes."""
    return max(size // weight.shape[1] // 8, 1) * 8


def _each_block(weight: Tensor, size: int, job: Callable[[int, Block], T]) -> list[T]:
    """Call ``job(first_row, block)`` on float32 row blocks; return the results in row order."""
    rows = _block_rows(weight, size)

    def task(first: int) -> T:
        return job(first, _float32(weight[first : first + rows]))

    starts = range(0, weight.shape[0], rows)
    threads = min(torch.get_num_threads(), len(starts))
    if threads == 1:
        return [task(first) for first in starts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(task, starts))


def _float32(block: Tensor) -> Block:
    """Return a row block as float32, without copying where it is that already.

    NumPy converts in the calling thread; torch would start threads of its own, which then spin on
    the cores that the other blocks need.
    """
    if block.dtype == torch.bfloat16:  # the upper half of a float32; NumPy does not know it
        halves: NDArray[np.uint16] = block.view(torch.uint16).numpy()
        return np.left_shift(halves, 16, dtype=np.uint32).view(np.float32)
    values: NDArray[np.floating] = block.numpy()
    return values.astype(np.float32, copy=False)


def _check_finite(finite: list[bool]) -> None:
    if not all(finite):
        raise ModelError(NOT_FINITE)
