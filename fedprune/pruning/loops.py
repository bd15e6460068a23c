"""Compiled loops: scores, thresholds and packed masks in one pass over the weight.

A score is ``|weight| * norm``, one float32 multiplication. Scores are non-negative, so their bit
patterns, read as int32 ("codes"), sort as they do; all selection is done on codes, exactly.
Written for numba: plain loops that vectorise, no Python objects.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit
from fedprune.wire.codes import pack
from fedprune.wire.codes import threshold as find_threshold

Lanes = NDArray[np.uint8] | NDArray[np.int32]

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
            threshold, ties = find_threshold(codes, prune, (low, high), d_in)
            start = (row - first) * d_in
            _keep_above(codes, threshold, ties, keep[start : start + d_in])
        pack(keep, (last - first) * d_in, bits[first * d_in // 8 :])
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
        pack(keep, (last - first) * d_in, bits[first * d_in // 8 :])


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

    Parameters
    ----------
    prune : int
        Of every group.
    lanes : NDArray[np.uint8 or np.int32]
        The place of each input in its group, shape (d_in,): from 0 to the size of a group, again
        and again. As narrow as it can be: ranks are counted in the same type.
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
    codes: NDArray[np.int32], prune: int, lanes: Lanes, ranks: Lanes, keep: NDArray[np.uint8]
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
