"""Compiled loops: scores, thresholds and packed masks in one pass over the weight.

A score is ``|weight| * norm``, one float32 multiplication. Scores are non-negative, so their bit
patterns, read as int32 ("codes"), sort as they do; all selection is done on codes, exactly.
Written for numba: plain loops that vectorise, no Python objects.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit

INFINITY = 0x7F800000  # the code of +inf; NaNs lie above it, or below zero
LOW_BITS = 15  # the layer's threshold is found in two digits of 16 and 15 bits
ALL = -1  # `prefix` of the first digit


@jit
def prune_rows(
    weights: NDArray[np.float32], norms: NDArray[np.float32], prune: int, bits: NDArray[np.uint8]
) -> bool:
    """Prune the `prune` lowest scores of each row; return whether all scores are finite.

    Parameters
    ----------
    weights : NDArray[np.float32]
        Shape (rows, d_in), C-contiguous.
    norms : NDArray[np.float32]
        Shape (d_in,), non-negative.
    prune : int
        0 <= prune <= d_in. Equal scores: the lower index is pruned first.
    bits : NDArray[np.uint8]
        Receives the packed mask of these rows, ceil(rows * d_in / 8) bytes.
    """
    rows, d_in = weights.shape
    codes, keep, tile = _buffers(d_in)
    for first in range(0, rows, tile):
        last = min(first + tile, rows)
        for row in range(first, last):
            low, high = _score(weights[row], norms, codes)
            if low < 0 or high >= INFINITY:
                return False
            threshold, ties = _threshold(codes, prune, low, high)
            start = (row - first) * d_in
            _keep_above(codes, threshold, ties, keep[start : start + d_in])
        _pack(keep, (last - first) * d_in, bits[first * d_in // 8 :])
    return True


@jit
def prune_below(
    weights: NDArray[np.float32],
    norms: NDArray[np.float32],
    threshold: int,
    ties: int,
    bits: NDArray[np.uint8],
) -> None:
    """Prune all scores with a code below `threshold`, and the first `ties` equal to it.

    Arrays are those of `prune_rows`.
    """
    rows, d_in = weights.shape
    codes, keep, tile = _buffers(d_in)
    for first in range(0, rows, tile):
        last = min(first + tile, rows)
        for row in range(first, last):
            _score(weights[row], norms, codes)
            start = (row - first) * d_in
            ties = _keep_above(codes, threshold, ties, keep[start : start + d_in])
        _pack(keep, (last - first) * d_in, bits[first * d_in // 8 :])


@jit
def prune_groups(
    weights: NDArray[np.float32],
    norms: NDArray[np.float32],
    prune: int,
    size: int,
    bits: NDArray[np.uint8],
) -> bool:
    """Prune the `prune` lowest of every `size` consecutive scores; return whether all are finite.

    Arrays are those of `prune_rows`; `size` divides d_in.
    """
    rows, d_in = weights.shape
    codes, keep, tile = _buffers(d_in)
    ranks = np.empty(d_in // size, np.int32)
    lanes = np.empty((size, d_in // size), np.int32)
    for first in range(0, rows, tile):
        last = min(first + tile, rows)
        for row in range(first, last):
            low, high = _score(weights[row], norms, codes)
            if low < 0 or high >= INFINITY:
                return False
            start = (row - first) * d_in
            _keep_ranked(codes, prune, lanes, ranks, keep[start : start + d_in])
        _pack(keep, (last - first) * d_in, bits[first * d_in // 8 :])
    return True


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
def _threshold(codes: NDArray[np.int32], prune: int, low: int, high: int) -> tuple[int, int]:
    """Return (threshold, ties): prune all codes below it and `ties` of those equal to it.

    Narrows a bracket by counting codes below a pivot, a loop that runs at memory speed. Pivots
    are interpolated, and bisected wherever interpolation left more than half of the bracket's
    codes, so that 62 + log2(d_in) counts suffice for any input; some ten are usual.
    """
    high += 1
    below_low, below_high = 0, codes.size
    bisect = False
    if prune == 0:
        return low, 0
    while high - low > 1:
        if bisect:
            pivot = low + (high - low) // 2
        else:
            share = (prune - below_low) / (below_high - below_low)
            pivot = min(max(low + int((high - low) * share), low + 1), high - 1)
        below = _count_below(codes, pivot)
        if below == prune:
            return pivot, 0
        inside = below_high - below_low
        if below < prune:
            low, below_low = pivot, below
        else:
            high, below_high = pivot, below
        bisect = not bisect and 2 * (below_high - below_low) > inside
    return low, prune - below_low


@jit
def _count_below(codes: NDArray[np.int32], pivot: int) -> int:
    narrow = np.int32(pivot)
    count = np.int32(0)  # 32 bits wide, so that a vector holds as many counters as codes
    for j in range(codes.size):
        count = np.int32(count + np.int32(codes[j] < narrow))
    return int(count)


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
    codes: NDArray[np.int32],
    prune: int,
    lanes: NDArray[np.int32],
    ranks: NDArray[np.int32],
    keep: NDArray[np.uint8],
) -> None:
    """Flag those with at least `prune` lower scores in their group, equal ones by index."""
    size, groups = lanes.shape
    for lane in range(size):
        for group in range(groups):
            lanes[lane, group] = codes[group * size + lane]
    for lane in range(size):
        ranks[:] = 0
        for other in range(size):
            before = np.int32(other < lane)  # of equals, the lower index counts as lower
            for group in range(groups):
                ranks[group] += np.int32(lanes[other, group] < lanes[lane, group] + before)
        for group in range(groups):
            keep[group * size + lane] = np.uint8(ranks[group] >= prune)


@jit
def _pack(keep: NDArray[np.uint8], count: int, bits: NDArray[np.uint8]) -> None:
    """Pack `count` flags, least significant bit first; unused bits of the last byte are zero."""
    whole = count // 8
    words = keep[: whole * 8].view(np.uint64)
    for j in range(whole):
        # Eight 0/1 bytes times this constant gather in the top byte, first flag lowest.
        bits[j] = np.uint8((words[j] * np.uint64(0x0102040810204080)) >> np.uint64(56))
    if count % 8:
        last = np.uint8(0)
        for j in range(whole * 8, count):
            last |= np.uint8(keep[j] << (j - whole * 8))
        bits[whole] = last
