"""Compiled loops over codes, the bit patterns of non-negative float32 numbers, which sort as they.

Written for numba: plain loops that vectorise, no Python objects.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit

Codes = NDArray[np.int32]


@jit
def threshold(codes: Codes, lowest: int, bracket: tuple[int, int], size: int) -> tuple[int, int]:
    """Return (threshold, ties): `lowest` codes are all those below it and `ties` of those equal.

    Narrows the bracket by counting codes below a pivot, a loop that runs at memory speed. Pivots
    are interpolated, and bisected wherever interpolation left more than half of the bracket's
    codes, so that 62 + log2(size) counts suffice for any input; some ten are usual.

    Parameters
    ----------
    codes : NDArray[np.int32]
        Non-negative; those above the bracket are not looked for.
    lowest : int
        0 <= lowest <= size.
    bracket : tuple of int
        The lowest code, and the highest of those that may be asked for.
    size : int
        How many codes are in the bracket.
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
    narrow = np.int32(pivot)
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
