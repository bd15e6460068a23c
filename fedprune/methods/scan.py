"""Compiled loops over all weights of an input, to find the norms behind a client's mask.

Logarithms of weights are int16 "codes" here, columns and rows are moved by codes too, so that a
register holds many weights; bits are rows of 64-bit words, the lowest first. Written for numba:
plain loops that vectorise.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit

Codes = NDArray[np.int16]
Words = NDArray[np.uint64]
Counts = NDArray[np.int32]

_CHUNK = 1 << 14  # codes counted at a time: the counter is as narrow as a code
_ONE = np.uint64(1)
_LANES = np.uint64(0x0101010101010101)


class Rows(NamedTuple):
    """What rows are asked for, and what is known of their thresholds.

    Attributes
    ----------
    kept : NDArray[np.int32]
        Weights that each row keeps, shape (rows,).
    levels : NDArray[np.int32]
        Thresholds, a weight above is kept, shape (rows,); read as a guess, then written.
    density : float
        Weights of a row per code around its threshold, a guess.
    """

    kept: Counts
    levels: Counts
    density: float


@jit
def column_counts(words: Words, counts: Counts) -> None:
    """Count the set bits of each column.

    Parameters
    ----------
    words : Words
        Shape (rows, ceil(d_in / 64)).
    counts : NDArray[np.int32]
        Receives the counts, shape (d_in,).
    """
    rows, width = words.shape
    sums = np.empty((8, width), np.uint64)  # eight counters of a byte in each word
    columns = sums.view(np.uint8)
    counts[:] = 0
    for first in range(0, rows, 255):
        sums[:] = 0
        for row in range(first, min(first + 255, rows)):
            for lane in range(8):
                shift = np.uint64(lane)
                for word in range(width):
                    sums[lane, word] += (words[row, word] >> shift) & _LANES
        for lane in range(8):
            for column in range(lane, counts.size, 8):
                counts[column] += columns[lane, column >> 3]


@jit
def sweep(codes: Codes, shifts: Codes, rows: Rows, above: Words) -> None:
    """Find each row's threshold, roughly, and which weights are above.

    Parameters
    ----------
    codes : NDArray[np.int16]
        Shape (rows, d_in), C-contiguous.
    shifts : NDArray[np.int16]
        Added to each column, shape (d_in,); no sum leaves int16.
    rows : Rows
        Receives the levels, which are off by one in 512 weights at most.
    above : Words
        Receives the bits, shape (rows, ceil(d_in / 64)); padding must be zero.
    """
    d_in = codes.shape[1]
    moved = np.empty(d_in, np.int16)
    flags = np.zeros(above.shape[1] * 8, np.uint64)
    packed = above.view(np.uint8)
    drift = 0
    for row in range(codes.shape[0]):
        _shift(codes[row], shifts, moved)
        guess = rows.levels[row] + drift
        level = _level(moved, rows.kept[row], guess, rows.density, d_in >> 9)
        drift += (level - guess) // 4  # what this row was off, the next ones may be, too
        rows.levels[row] = level
        _flag_above(moved, level, flags.view(np.uint8))
        _pack(flags, packed[row])


@jit
def split(codes: Codes, shifts: Codes, bands: Codes, rows: Rows, above: Words, near: Words) -> None:
    """Find each row's threshold, and which weights are far above, and which near.

    Parameters
    ----------
    codes, shifts : NDArray[np.int16]
        As in `sweep`.
    bands : NDArray[np.int16]
        How far from the threshold the weights of a column are near, shape (d_in,).
    rows : Rows
        As in `sweep`; levels are off by one in 2048 weights at most.
    above, near : Words
        Receive the bits, as in `sweep`; no weight is both.
    """
    d_in = codes.shape[1]
    moved = np.empty(d_in, np.int16)
    highs = np.zeros(above.shape[1] * 8, np.uint64)
    nears = np.zeros(above.shape[1] * 8, np.uint64)
    packed_above, packed_near = above.view(np.uint8), near.view(np.uint8)
    for row in range(codes.shape[0]):
        _shift(codes[row], shifts, moved)
        level = _level(moved, rows.kept[row], rows.levels[row], rows.density, d_in >> 11)
        rows.levels[row] = level
        _flag_near(moved, level, bands, highs.view(np.uint8), nears.view(np.uint8))
        _pack(highs, packed_above[row])
        _pack(nears, packed_near[row])


@jit
def _shift(codes: Codes, shifts: Codes, moved: Codes) -> None:
    for j in range(codes.size):
        moved[j] = np.int16(codes[j] + shifts[j])


@jit
def _level(moved: Codes, keep: int, level: int, density: float, tolerance: int) -> int:
    """Return a level that `keep` codes are above, give or take the tolerance.

    Steps by the density first, then halves and interpolates in turn what brackets the level.
    """
    low, high = -(1 << 15), (1 << 15) - 1
    above_low, above_high = moved.size, 0
    level = min(max(level, low + 1), high - 1)
    turn = 0
    while high - low > 1:
        above = _count_above(moved, level)
        if abs(above - keep) <= tolerance:
            return level
        if above > keep:
            low, above_low = level, above
        else:
            high, above_high = level, above
        level += int(round((above - keep) / density))
        turn += 1
        if turn > 3 or level <= low or level >= high:
            if turn % 2 and above_low > above_high:
                level = low + (high - low) * (above_low - keep) // (above_low - above_high)
            else:
                level = (low + high) // 2
            level = min(max(level, low + 1), high - 1)
    return high


@jit
def _count_above(moved: Codes, level: int) -> int:
    narrow = np.int16(level)
    total = 0
    for first in range(0, moved.size, _CHUNK):
        part = moved[first : first + _CHUNK]
        count = np.int16(0)
        for j in range(part.size):
            count = np.int16(count + np.int16(part[j] > narrow))
        total += int(count)
    return total


@jit
def _flag_above(moved: Codes, level: int, flags: NDArray[np.uint8]) -> None:
    narrow = np.int16(level)
    for j in range(moved.size):
        flags[j] = np.uint8(moved[j] > narrow)


@jit
def _flag_near(
    moved: Codes,
    level: int,
    bands: Codes,
    highs: NDArray[np.uint8],
    nears: NDArray[np.uint8],
) -> None:
    # Levels this far out belong to no weight; kept away from them, no sum leaves int16.
    narrow = np.int16(min(max(level, -(1 << 14) * 3 // 2), (1 << 14) * 3 // 2))
    for j in range(moved.size):
        high = np.int16(moved[j] > np.int16(narrow + bands[j]))
        not_low = np.int16(moved[j] >= np.int16(narrow - bands[j]))
        highs[j] = np.uint8(high)
        nears[j] = np.uint8(not_low - high)


@jit
def _pack(flags: Words, packed: NDArray[np.uint8]) -> None:
    """Pack bytes of 0 and 1, eight a word, first flag lowest."""
    for j in range(flags.size):
        # Eight 0/1 bytes times this constant gather in the top byte, first flag lowest.
        packed[j] = np.uint8((flags[j] * np.uint64(0x0102040810204080)) >> np.uint64(56))
