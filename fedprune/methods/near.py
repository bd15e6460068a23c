"""Compiled loops over the few weights near their row's threshold: the exact fit of a mask.

Each line of a matrix, a row or a column, has a list of its near weights. The logarithms are
fixed-point integers, fine enough to tell weights apart, and nothing is rounded as lines move.
Written for numba.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit
from fedprune.methods.scan import Codes, Counts, Words

FINE = 15  # bits of a logarithm below those of its code

_ONE = np.uint64(1)
_HIGHEST = np.int32((1 << 31) - 1)
_LOWEST = np.int32(-(1 << 31) + 1)


class Lists(NamedTuple):
    """The near weights of each line.

    Attributes
    ----------
    starts : NDArray[np.int64]
        Where each line's list starts, and the last one ends, shape (lines + 1,).
    others : NDArray[np.int32]
        The line of the other kind that each weight is on: its column in lists of rows.
    logs : NDArray[np.int32]
        Logarithm of each weight.
    """

    starts: NDArray[np.int64]
    others: Counts
    logs: Counts


@jit
def gather(
    codes: Codes,
    rest: Codes,
    near: Words,
    mask: Words,
    rows: Lists,
    kept: NDArray[np.bool_],
) -> None:
    """Make lists of rows.

    Parameters
    ----------
    codes, rest : NDArray[np.int16]
        A logarithm is ``(code << FINE) + rest``; shape (rows, d_in).
    near : Words
        Bits of the near weights, shape (rows, ceil(d_in / 64)).
    mask : Words
        Bits of the weights that the client keeps.
    rows : Lists
        Receives the lists; `starts` is there already.
    kept : NDArray[np.bool_]
        Receives for each near weight whether the client keeps it.
    """
    place = 0
    for row in range(near.shape[0]):
        first = place
        for word in range(near.shape[1]):
            left = near[row, word]
            while left:
                lowest = left & (~left + _ONE)
                bit = _popcount(lowest - _ONE)
                rows.others[place] = np.int32(word * 64 + np.int64(bit))
                kept[place] = bool((mask[row, word] >> bit) & _ONE)
                place += 1
                left ^= lowest
        for k in range(first, place):  # in a loop of its own, so that memory reads overlap
            j = rows.others[k]
            rows.logs[k] = np.int32((np.int32(codes[row, j]) << FINE) + rest[row, j])


@jit
def transpose(rows: Lists, columns: Lists) -> None:
    """Make lists of columns from those of rows; `columns.starts` receives its values, too."""
    starts = columns.starts
    starts[:] = 0
    for k in range(rows.others.size):
        starts[rows.others[k] + 1] += 1
    for j in range(starts.size - 1):
        starts[j + 1] += starts[j]
    places = starts[:-1].copy()
    for row in range(rows.starts.size - 1):
        for k in range(rows.starts[row], rows.starts[row + 1]):
            place = places[rows.others[k]]
            columns.others[place] = row
            columns.logs[place] = rows.logs[k]
            places[rows.others[k]] += 1


@jit
def match(lists: Lists, shifts: Counts, levels: Counts, keep: Counts) -> int:
    """Move each line's level until as many of its near weights are above as it should keep.

    Returns how many lines had another number above before.

    Parameters
    ----------
    lists : Lists
        The near weights.
    shifts : NDArray[np.int32]
        Added to the logarithms by the other line that they are on.
    levels : NDArray[np.int32]
        Received: halfway between the lowest weight above and the highest of the rest. A level
        that no weight bounds on one side stays as it is, or goes as far as the other asks for.
    keep : NDArray[np.int32]
        How many weights should be above; out of range means all or none.
    """
    longest = 0
    for line in range(levels.size):
        longest = max(longest, lists.starts[line + 1] - lists.starts[line])
    buffer = np.empty(longest, np.int32)
    off = 0
    for line in range(levels.size):
        first = lists.starts[line]
        size = lists.starts[line + 1] - first
        moved = buffer[:size]
        for k in range(size):
            moved[k] = np.int32(lists.logs[first + k] + shifts[lists.others[first + k]])
        above = _count_above(moved, np.int32(levels[line]))
        off += above != keep[line]
        levels[line] = _between(moved, keep[line], levels[line], above)
    return off


@jit
def count_wrong(
    lists: Lists,
    shifts: Counts,
    levels: Counts,
    kept: NDArray[np.bool_],
    wrong: NDArray[np.int64],
) -> None:
    """Add to each line's count its near weights that are above but not kept, or the reverse."""
    for line in range(levels.size):
        for k in range(lists.starts[line], lists.starts[line + 1]):
            moved = np.int32(lists.logs[k] + shifts[lists.others[k]])
            wrong[line] += (moved > levels[line]) != kept[k]


@jit
def _between(moved: Counts, keep: int, level: int, above: int) -> int:
    """Return a level with `keep` weights above; `level` has `above`, so that few steps lead there.

    Of equal weights that cannot be separated, all stay on the same side.
    """
    narrow = np.int32(level)
    if moved.size == 0:
        return level
    if keep <= 0:
        return int(max(_highest_below(moved, _HIGHEST), narrow))
    if keep >= moved.size:
        return int(min(_lowest_above(moved, _LOWEST) - 1, narrow))
    while above > keep:
        narrow = _lowest_above(moved, narrow)
        above = _count_above(moved, narrow)
    while above < keep:
        narrow = np.int32(_highest_below(moved, narrow) - 1)
        above = _count_above(moved, narrow)
    return (int(_lowest_above(moved, narrow)) + int(_highest_below(moved, narrow))) >> 1


@jit
def _count_above(moved: Counts, level: np.int32) -> int:
    count = np.int32(0)
    for k in range(moved.size):
        count = np.int32(count + np.int32(moved[k] > level))
    return int(count)


@jit
def _lowest_above(moved: Counts, level: np.int32) -> np.int32:
    lowest = _HIGHEST
    for k in range(moved.size):
        lowest = min(lowest, moved[k] if moved[k] > level else _HIGHEST)
    return lowest


@jit
def _highest_below(moved: Counts, level: np.int32) -> np.int32:
    highest = _LOWEST
    for k in range(moved.size):
        highest = max(highest, moved[k] if moved[k] <= level else _LOWEST)
    return highest


@jit
def _popcount(word: np.uint64) -> np.uint64:
    word -= (word >> _ONE) & np.uint64(0x5555555555555555)
    pairs = np.uint64(0x3333333333333333)
    word = (word & pairs) + ((word >> np.uint64(2)) & pairs)
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)
