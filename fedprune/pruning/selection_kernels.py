"""Masks: row blocks go to compiled loops on the CPU, in as many threads as torch uses.

Agrees with `fedprune.pruning.selection.prune_lowest` bit for bit, and never holds the scores of a
whole matrix (the column group excepted, which transposes them). A score is ``|weight| * norm``, one
float32 multiplication. Scores are non-negative, so their bit patterns, read as int32 ("codes"),
sort as they do; all selection is done on codes, exactly.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config.pattern import pruned_count
from fedprune.errors import ModelError
from fedprune.jit import jit
from fedprune.pruning import selection
from fedprune.pruning.groups import NOT_FINITE, MaskSpec, check_divides
from fedprune.wire.masks import BitMask, packed_size

T = TypeVar("T")
Block = NDArray[np.float32]

_BLOCK = 1 << 20  # weights of one task: 4 MB of float32, a few hundred microseconds of work
_LAYER_BLOCK = 1 << 22  # larger where every block carries a histogram


def prune_products(weight: Tensor, norms: Tensor, spec: MaskSpec) -> BitMask:
    """Return the mask that prunes the lowest ``|weight| * norms`` of each comparison group.

    By compiled loops on the CPU, by tensor operations elsewhere; the masks are the same.

    `weight`: shape (d_out, d_in), any floating dtype, strides and device. Scores are float32.
    `norms`: norms of the linear's inputs, float32, shape (d_in,), non-negative. `spec`: sparsity,
    pattern and comparison group. Equal scores: the lower index is pruned first. Raises ModelError
    if a score is NaN or infinite, or an N:M pattern does not divide d_in.
    """
    if not selection.runs_compiled(weight):
        scores = weight.detach().to(torch.float32).abs() * norms
        _check_finite([bool(torch.isfinite(scores).all())])
        return BitMask.from_bool(selection.prune_lowest(scores, spec).cpu().numpy())
    scale = norms.detach().to(torch.float32).contiguous().numpy()
    weight = weight.detach().contiguous()  # a whole transpose is faster than one by blocks
    d_out, d_in = weight.shape
    bits = np.zeros(packed_size(weight.numel()), dtype=np.uint8)
    if spec.pattern.n is not None and spec.pattern.m is not None:
        check_divides(spec.pattern, d_in)
        n, m = spec.pattern.n, spec.pattern.m
        lanes: Lanes = (np.arange(d_in) % m).astype(np.int32)
        if m <= 256:
            lanes = lanes.astype(np.uint8)
        finite = _each_block(
            weight,
            _BLOCK,
            lambda row, w: prune_groups(w, scale, m - n, lanes, _at(bits, row, w)),
        )
        _check_finite(finite)
    elif spec.group == "row":
        count = pruned_count(d_in, spec.sparsity)
        finite = _each_block(
            weight, _BLOCK, lambda row, w: prune_rows(w, scale, count, _at(bits, row, w))
        )
        _check_finite(finite)
    elif spec.group == "layer":
        _prune_layer(weight, scale, pruned_count(weight.numel(), spec.sparsity), bits)
    else:
        scores = (weight.to(torch.float32).abs() * norms).t()
        rows = MaskSpec(spec.sparsity, spec.pattern, "row")
        columns = prune_products(scores, torch.ones(scores.shape[1]), rows).to_bool()
        return BitMask.from_bool(torch.from_numpy(columns).t().contiguous().numpy())
    return BitMask(bits, (d_out, d_in))


def prune_count(groups: Tensor, count: int) -> Tensor:
    """Return the boolean mask that prunes the `count` lowest scores of each row.

    As `fedprune.pruning.selection.prune_count`, for few rows or short ones: in one thread.

    `groups`: scores, float32, shape (groups, size), on the CPU. `count`: at most the size of a
    group. Raises ModelError if a score is NaN or infinite.
    """
    scores = groups.contiguous().numpy()
    bits = np.empty(packed_size(scores.size), dtype=np.uint8)
    ones = np.ones(scores.shape[1], dtype=np.float32)
    _check_finite([prune_rows(scores, ones, count, bits)])
    return torch.from_numpy(BitMask(bits, scores.shape).to_bool())


def _prune_layer(
    weight: Tensor, norms: NDArray[np.float32], prune: int, bits: NDArray[np.uint8]
) -> None:
    """Prune the lowest `prune` scores of the matrix by a radix select in two digits."""

    def counted(prefix: int, size: int) -> list[NDArray[np.int32]]:
        def job(_: int, block: Block) -> NDArray[np.int32] | None:
            counts = np.zeros(size, dtype=np.int32)
            return counts if histogram(block, norms, prefix, counts) else None

        found = _each_block(weight, _LAYER_BLOCK, job)
        _check_finite([counts is not None for counts in found])
        return [counts for counts in found if counts is not None]

    upper, left = _digit(counted(ALL, 1 << 16), prune)
    lower_counts = counted(upper, 1 << LOW_BITS)
    lower, left = _digit(lower_counts, left)
    threshold = upper << LOW_BITS | lower
    quotas = _tie_quotas([int(counts[lower]) for counts in lower_counts], left)
    rows = _block_rows(weight, _LAYER_BLOCK)

    def job(row: int, block: Block) -> None:
        ties = quotas[row // rows]
        prune_rows(block, norms, BELOW, _at(bits, row, block), threshold, ties)

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


Lanes = NDArray[np.uint8] | NDArray[np.int32] | NDArray[np.int64]
Codes = NDArray[np.int32] | NDArray[np.unsignedinteger[Any]]

INFINITY = 0x7F800000  # the code of +inf; NaNs lie above it, or below zero
LOW_BITS = 15  # the layer's threshold is found in two digits of 16 and 15 bits
ALL = -1  # `prefix` of the first digit
BELOW = -1  # `prune` of rows that have one threshold together


@jit
def prune_rows(
    weights: NDArray[np.float32],
    norms: NDArray[np.float32],
    prune: int,
    bits: NDArray[np.uint8],
    threshold: int = 0,
    ties: int = 0,
) -> bool:
    """Prune the `prune` lowest scores of each row; return whether all scores are finite.

    `weights`: shape (rows, d_in), C-contiguous. `norms`: shape (d_in,), non-negative. `prune`: 0 <=
    prune <= d_in; BELOW prunes all scores with a code below `threshold` instead, and the first
    `ties` equal to it. Equal scores: the lower index is pruned first. `bits`: receives the packed
    mask of these rows, ceil(rows * d_in / 8) bytes.
    """
    rows, d_in = weights.shape
    codes, keep, tile = _buffers(d_in)
    for first in range(0, rows, tile):
        last = min(first + tile, rows)
        for row in range(first, last):
            low, high = _score(weights[row], norms, codes)
            if low < 0 or high >= INFINITY:
                return False
            if prune != BELOW:
                threshold, ties = find_threshold(codes, prune, (low, high), d_in)
            start = (row - first) * d_in
            ties = _keep_above(codes, threshold, ties, keep[start : start + d_in])
        pack(keep, (last - first) * d_in, bits[first * d_in // 8 :])
    return True


@jit
def prune_groups(
    weights: NDArray[np.float32],
    norms: NDArray[np.float32],
    prune: int,
    lanes: Lanes,
    bits: NDArray[np.uint8],
) -> bool:
    """Prune the `prune` lowest scores of each group of inputs; return whether all are finite.

    Other arrays are those of `prune_rows`.

    `prune`: of every group. `lanes`: the place of each input in its group, shape (d_in,): from 0 to
    the size of a group, again and again. As narrow as it can be: ranks are counted in the same
    type.
    """
    rows, d_in = weights.shape
    codes, keep, tile = _buffers(d_in)
    ranks = np.empty_like(lanes)
    for first in range(0, rows, tile):
        last = min(first + tile, rows)
        for row in range(first, last):
            low, high = _score(weights[row], norms, codes)
            if low < 0 or high >= INFINITY:
                return False
            start = (row - first) * d_in
            _keep_ranked(codes, prune, lanes, ranks, keep[start : start + d_in])
        pack(keep, (last - first) * d_in, bits[first * d_in // 8 :])
    return True


@jit
def keep_ranked(
    firsts: NDArray[np.unsignedinteger[Any]], seconds: NDArray[np.uint32], prune: int, size: int
) -> NDArray[np.bool_]:
    """Return which numbers survive, all but the `prune` lowest of every `size` of a row.

    `firsts`, `seconds`: shape (rows, d_in); numbers go by the second where the first are equal,
    and by index where both are.
    """
    rows, d_in = firsts.shape
    keep = np.empty(firsts.shape, np.uint8)
    lanes = (np.arange(d_in) % size).astype(np.int64)
    ranks, codes = np.empty_like(lanes), np.empty(d_in, np.uint64)
    for row in range(rows):
        for j in range(d_in):
            codes[j] = np.uint64(firsts[row, j]) << np.uint64(32) | np.uint64(seconds[row, j])
        _keep_ranked(codes, prune, lanes, ranks, keep[row])
    return keep.view(np.bool_)


@jit
def histogram(
    weights: NDArray[np.float32],
    norms: NDArray[np.float32],
    prefix: int,
    counts: NDArray[np.int32],
) -> bool:
    """Count one digit of all codes; return whether all scores are finite.

    The first digit (`prefix` ALL) is the code's upper 16 bits; the second its lower 15, counted
    only where the upper ones equal `prefix`. `counts` has a place for every value of the digit.
    """
    rows, d_in = weights.shape
    codes, _, _ = _buffers(d_in)
    for row in range(rows):
        low, high = _score(weights[row], norms, codes)
        if low < 0 or high >= INFINITY:
            return False
        if prefix == ALL:
            for j in range(d_in):
                counts[codes[j] >> LOW_BITS] += 1
        else:
            for j in range(d_in):
                if codes[j] >> LOW_BITS == prefix:
                    counts[codes[j] & ((1 << LOW_BITS) - 1)] += 1
    return True


@jit
def _buffers(d_in: int) -> tuple[NDArray[np.int32], NDArray[np.uint8], int]:
    """Return codes of one row, keep flags of one tile, and the tile's rows: whole bytes of mask."""
    tile = 1 if d_in % 8 == 0 else 8
    return np.empty(d_in, np.int32), np.empty(tile * d_in, np.uint8), tile


@jit
def _score(
    weights: NDArray[np.float32], norms: NDArray[np.float32], codes: NDArray[np.int32]
) -> tuple[int, int]:
    """Fill the codes of one row; return the lowest and the highest."""
    scores = codes.view(np.float32)
    for j in range(codes.size):
        scores[j] = np.abs(weights[j]) * norms[j]
    low = codes[0]
    high = codes[0]
    for j in range(codes.size):
        low = min(low, codes[j])
        high = max(high, codes[j])
    return int(low), int(high)


@jit
def _keep_above(
    codes: NDArray[np.int32], threshold: int, ties: int, keep: NDArray[np.uint8]
) -> int:
    """Flag the survivors of one row; return how many ties are left to prune after it."""
    narrow = np.int32(threshold)
    for j in range(codes.size):
        keep[j] = np.uint8(codes[j] >= narrow)
    if ties > 0:
        for j in range(codes.size):
            if codes[j] == narrow:
                keep[j] = 0
                ties -= 1
                if ties == 0:
                    break
    return ties


@jit
def _keep_ranked(
    codes: Codes, prune: int, lanes: Lanes, ranks: Lanes, keep: NDArray[np.uint8]
) -> None:
    """Flag those with at least `prune` lower scores in their group, equal ones by index."""
    size = int(lanes[-1]) + 1
    ranks[:] = 0
    for distance in range(1, size):
        bound = ranks.dtype.type(size - distance)  # lanes below it have a neighbour at the distance
        after, ranks_after = codes[distance:], ranks[distance:]
        for j in range(after.size):
            ranks[j] += (lanes[j] < bound) & (after[j] < codes[j])
        for j in range(after.size):
            ranks_after[j] += (lanes[j] < bound) & (codes[j] <= after[j])
    least = ranks.dtype.type(prune)
    for j in range(codes.size):
        keep[j] = np.uint8(ranks[j] >= least)


@jit
def find_threshold(
    codes: Codes, lowest: int, bracket: tuple[int, int], size: int
) -> tuple[int, int]:
    """Return (threshold, ties): `lowest` codes are all those below it and `ties` of those equal.

    Narrows the bracket by counting codes below a pivot, a loop that runs at memory speed. Pivots
    are interpolated, and bisected wherever interpolation left more than half of the bracket's
    codes, so that 62 + log2(size) counts suffice for any input; some ten are usual.

    `codes`: non-negative; those above the bracket are not looked for. `lowest`: 0 <= lowest <=
    size. `bracket`: the lowest code, and the highest of those that may be asked for.
    """
    low, high = bracket[0], bracket[1] + 1
    below_low, below_high = 0, size
    bisect = False
    if lowest == 0:
        return low, 0
    while high - low > 1:
        if bisect:
            pivot = low + (high - low) // 2
        else:
            share = (lowest - below_low) / (below_high - below_low)
            pivot = min(max(low + int((high - low) * share), low + 1), high - 1)
        below = _count_below(codes, pivot)
        if below == lowest:
            return pivot, 0
        inside = below_high - below_low
        if below < lowest:
            low, below_low = pivot, below
        else:
            high, below_high = pivot, below
        bisect = not bisect and 2 * (below_high - below_low) > inside
    return low, lowest - below_low


@jit
def _count_below(codes: Codes, pivot: int) -> int:
    narrow = codes.dtype.type(pivot)
    count = np.int32(0)  # 32 bits wide, so that a vector holds as many counters as codes
    for j in range(codes.size):
        count = np.int32(count + np.int32(codes[j] < narrow))
    return int(count)


@jit
def pack(flags: NDArray[np.uint8], count: int, bits: NDArray[np.uint8]) -> None:
    """Pack `count` flags, least significant bit first; unused bits of the last byte are zero."""
    whole = count // 8
    words = flags[: whole * 8].view(np.uint64)
    for j in range(whole):
        # Eight 0/1 bytes times this constant gather in the top byte, first flag lowest.
        bits[j] = np.uint8((words[j] * np.uint64(0x0102040810204080)) >> np.uint64(56))
    if count % 8:
        last = np.uint8(0)
        for j in range(whole * 8, count):
            last |= np.uint8(flags[j] << (j - whole * 8))
        bits[whole] = last
