"""Compiled loops over bits by comparison group: 64-bit words, the lowest bit first.

Written for numba: plain loops that vectorise.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit
from fedprune.wire.codes import pack, threshold

Words = NDArray[np.uint64]
Counts = NDArray[np.int64]
Codes = NDArray[np.int32]

_OUT = np.int32(0x7FFFFFFF)  # above all codes
_LANES = 8  # words of a row that are turned together: a cache line


@jit
def narrow(digit: Words, tied: Words, survivors: Words, left: Counts, size: Counts) -> None:
    """Look at one digit of the votes to keep: which of the tied are above the threshold or below.

    Parameters
    ----------
    digit, tied, survivors : NDArray[np.uint64]
        Bits, shape (groups, words); the last two are changed.
    left : NDArray[np.int64]
        Of each group, how many of the tied are to be pruned; changed.
    size : NDArray[np.int64]
        How many are tied; changed.
    """
    for group in range(tied.shape[0]):
        ones, ties, sure = digit[group], tied[group], survivors[group]
        kept = np.uint64(0)
        for word in range(ties.size):
            kept += _popcount(ties[word] & ones[word])
        others = size[group] - np.int64(kept)
        if others > left[group]:  # the threshold is among those without the digit
            size[group] = others
            for word in range(ties.size):
                above = ties[word] & ones[word]
                sure[word] |= above
                ties[word] ^= above
        else:
            left[group] -= others
            size[group] = np.int64(kept)
            for word in range(ties.size):
                ties[word] &= ones[word]


@jit
def transpose(rows: Words, columns: Words) -> None:
    """Transpose a bit matrix.

    Parameters
    ----------
    rows : NDArray[np.uint64]
        Shape (64 * n, m).
    columns : NDArray[np.uint64]
        Receives the transpose, shape (64 * m, n).
    """
    height, width = rows.shape
    tile = np.zeros((64, _LANES), np.uint64)
    turned = np.empty((64 * _LANES, _LANES), np.uint64)
    for first in range(0, width, _LANES):
        lanes = min(_LANES, width - first)
        for start in range(0, height // 64, _LANES):  # as many as fill a cache line of each column
            tiles = min(_LANES, height // 64 - start)
            for place in range(tiles):
                for line in range(64):
                    row = rows[(start + place) * 64 + line]
                    for lane in range(lanes):
                        tile[line, lane] = row[first + lane]
                _turn(tile)
                for lane in range(lanes):
                    for line in range(64):
                        turned[lane * 64 + line, place] = tile[line, lane]
            for line in range(lanes * 64):
                column = columns[first * 64 + line]
                for place in range(tiles):
                    column[start + place] = turned[line, place]


@jit
def copy_columns(codes: Codes, first: int, lines: Codes) -> None:
    """Copy columns of a matrix, from the first one on, to lines, shape (columns, rows or more)."""
    whole = codes.shape[0] // 4 * 4
    for start in range(0, lines.shape[0], 64):  # as many lines as a cache holds the ends of
        some = lines[start : start + 64]
        for top in range(0, whole, 4):
            for line in range(some.shape[0]):
                for row in range(4):
                    some[line, top + row] = codes[top + row, first + start + line]
        for row in range(whole, codes.shape[0]):
            for line in range(some.shape[0]):
                some[line, row] = codes[row, first + start + line]


@jit
def compare_digit(digit: Words, other: bool, more: Words, equal: Words) -> None:
    """Compare one digit of many numbers with that of another number, the highest digit first.

    Parameters
    ----------
    digit : NDArray[np.uint64]
        The digit of each number.
    other : bool
        The other number's.
    more, equal : NDArray[np.uint64]
        Which numbers are above the other, and which equal it as far as the digits went; changed.
    """
    for word in range(more.size):
        if other:
            equal[word] &= digit[word]
        else:
            more[word] |= equal[word] & digit[word]
            equal[word] &= ~digit[word]


@jit
def clear_lowest(tied: Words, quotas: Counts, codes: Codes, lines: Counts) -> None:
    """Clear the bits of each group's lowest codes, of equals the first.

    Parameters
    ----------
    tied : NDArray[np.uint64]
        Shape (groups, words); changed.
    quotas : NDArray[np.int64]
        Bits to clear in each group, at most as many as are set.
    codes : NDArray[np.int32]
        Non-negative, shape (lines, size of a group or more).
    lines : NDArray[np.int64]
        The line of each group.
    """
    width = min(codes.shape[1], tied.shape[1] * 64)
    found = np.empty(width, np.int32)
    flags = np.zeros(tied.shape[1] * 64, np.uint8)
    drop = np.empty(tied.shape[1], np.uint64)
    for group in range(tied.shape[0]):
        bracket, size = _masked(codes[lines[group], :width], tied[group], found)
        limit, ties = threshold(found, quotas[group], bracket, size)
        least = np.int32(limit)
        for member in range(width):
            flags[member] = np.uint8(found[member] < least)
        member = 0
        while ties > 0:
            if found[member] == least:
                flags[member] = 1
                ties -= 1
            member += 1
        pack(flags, flags.size, drop.view(np.uint8))
        for word in range(drop.size):
            tied[group, word] &= ~drop[word]


@jit
def compare(codes: Codes, low: int, high: int, below: Words, inside: Words) -> None:
    """Flag the codes below `low`, and those from `low` to `high`, in whole words of bits."""
    step = 4096
    flags = np.zeros(step, np.uint8)
    for first in range(0, codes.size, step):
        part = codes[first : first + step]
        if part.size < step:
            flags[:] = 0
        words = (part.size + 63) // 64
        start = first // 64
        for j in range(part.size):
            flags[j] = np.uint8(part[j] < np.int32(low))
        pack(flags, words * 64, below[start : start + words].view(np.uint8))
        for j in range(part.size):
            flags[j] = np.uint8((part[j] >= np.int32(low)) & (part[j] <= np.int32(high)))
        pack(flags, words * 64, inside[start : start + words].view(np.uint8))


@jit
def _masked(codes: Codes, tied: Words, found: NDArray[np.int32]) -> tuple[tuple[int, int], int]:
    """Copy the codes of the tied, the highest number for all others; return bracket and size."""
    size = np.uint64(0)
    for word in range(tied.size):
        size += _popcount(tied[word])
    whole = found.size // 64
    for word in range(whole):
        bits = tied[word]
        part, into = codes[word * 64 : word * 64 + 64], found[word * 64 : word * 64 + 64]
        for lane in range(64):
            into[lane] = _if_set(part[lane], bits, lane)
    for member in range(whole * 64, found.size):
        found[member] = _if_set(codes[member], tied[whole], member - whole * 64)
    low, above = _OUT, np.int32(0)
    for member in range(found.size):
        low = min(low, found[member])
    for member in range(found.size):
        above = max(above, np.int32((found[member] + np.int32(1)) & _OUT))  # 0 of those out
    return (int(low), int(above) - 1), int(size)


@jit
def _if_set(code: np.int32, bits: np.uint64, lane: int) -> np.int32:
    out = np.int32((bits >> np.uint64(lane)) & np.uint64(1)) - np.int32(1)
    return np.int32(code | (out & _OUT))


@jit
def _popcount(word: np.uint64) -> np.uint64:
    """Count the set bits; compilers know this pattern."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    pairs = np.uint64(0x3333333333333333)
    word = (word & pairs) + ((word >> np.uint64(2)) & pairs)
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@jit
def _turn(tile: Words) -> None:
    """Transpose 64 words of 64 bits, in each lane: squares of 32, 16 ... 1 change places."""
    square = 32
    low = np.uint64(0x00000000FFFFFFFF)
    while square:
        line = 0
        while line < 64:
            for lane in range(_LANES):
                swap = ((tile[line, lane] >> np.uint64(square)) ^ tile[line + square, lane]) & low
                tile[line + square, lane] ^= swap
                tile[line, lane] ^= swap << np.uint64(square)
            line = ((line | square) + 1) & ~square
        square >>= 1
        low ^= low << np.uint64(square)
