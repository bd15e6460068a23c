"""N:M masks below one bit a weight: each group by its number among all groups of that kind.

The M flags of a group that keeps N are one of C(M, N) words. Words are numbered in the
combinatorial number system (flag i, from 0, is the k-th survivor: it adds C(i, k)), and as many
numbers as fit are the digits of one little-endian integer, lowest digit first: for 2:4 three groups
in a byte, 2/3 bit a weight. The last integer is filled with zero digits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fedprune.config.pattern import Pattern
from fedprune.errors import WireError

Unsigned = NDArray[np.unsignedinteger]

_WEIGHTS = 1 << 17  # weights of a step, about
_TABLE = 16  # longest group that is looked up in a table
_NO_GROUP = np.uint16(0xFFFF)


@dataclass(frozen=True)
class Coding:
    """How groups of one pattern are packed.

    Parameters
    ----------
    n, m : int
        Survivors of a group, and its weights.
    digits : int
        Groups in one integer.
    size : int
        Bytes of one integer: 1, 2, 4 or 8.
    """

    n: int
    m: int
    digits: int
    size: int

    @property
    def words(self) -> int:
        """Number of different groups."""
        return comb(self.m, self.n)

    def payload(self, weights: int) -> int:
        """Return the bytes of a number of weights, a multiple of m."""
        return -(-(weights // self.m) // self.digits) * self.size


@lru_cache
def coding(pattern: Pattern) -> Coding | None:
    """Return the shortest coding of a pattern; None where plain bits are as short."""
    if pattern.n is None or pattern.m is None or pattern.m > 255:
        return None
    words = comb(pattern.m, pattern.n)
    best = None
    for size in (1, 2, 4, 8):
        digits = 0
        while words ** (digits + 1) <= 1 << 8 * size:
            digits += 1
        rival = (best.size, best.digits * pattern.m) if best else (1, 8)
        if size * rival[1] < rival[0] * digits * pattern.m:
            best = Coding(pattern.n, pattern.m, digits, size)
    return best


def pack(bits: NDArray[np.uint8], weights: int, code: Coding) -> NDArray[np.uint8]:
    """Return the integers of a mask as bytes.

    Parameters
    ----------
    bits : NDArray[np.uint8]
        Packed mask, least significant bit first.
    weights : int
        Weights of the mask, a multiple of m.
    code : Coding
        How to pack.

    Raises
    ------
    WireError
        If a group does not have n survivors.
    """
    out = np.zeros(code.payload(weights), dtype=np.uint8)
    integers: Unsigned = out.view(f"<u{code.size}")
    base = integers.dtype.type(code.words)
    for start, stop in _steps(weights, code):
        numbers = _numbers(bits[start // 8 : -(-stop // 8)], (stop - start) // code.m, code)
        first = start // code.m // code.digits
        part = integers[first : first - (-numbers.size // code.digits)]
        for digit in reversed(range(code.digits)):
            lane = numbers[digit :: code.digits].astype(integers.dtype, copy=False)
            part *= base
            part[: lane.size] += lane
    return out


def unpack(payload: NDArray[np.uint8], weights: int, code: Coding) -> NDArray[np.uint8]:
    """Return the packed mask of what `pack` gave, least significant bit first.

    Raises
    ------
    WireError
        If an integer is above the highest that groups give, or a digit after the last group is
        not zero.
    """
    integers: Unsigned = payload.view(f"<u{code.size}")
    bits = np.empty(-(-weights // 8), dtype=np.uint8)
    for start, stop in _steps(weights, code):
        first, count = start // code.m // code.digits, (stop - start) // code.m
        numbers = _digits(integers[first : first - (-count // code.digits)], count, code)
        bits[start // 8 : -(-stop // 8)] = _bits(numbers, code)
    return bits


def _steps(weights: int, code: Coding) -> Iterator[tuple[int, int]]:
    """Cut weights at whole bytes of mask that are whole integers, too."""
    unit = 8 * code.m * code.digits
    step = max(_WEIGHTS // unit, 1) * unit
    for start in range(0, weights, step):
        yield start, min(start + step, weights)


def _digits(integers: Unsigned, count: int, code: Coding) -> Unsigned:
    """Return the first `count` digits of integers; refuse what is no group."""
    base = integers.dtype.type(code.words)
    digits = np.empty((integers.size, code.digits), dtype=integers.dtype)
    left = integers
    for digit in range(code.digits):
        rest = left // base
        np.subtract(left, rest * base, out=digits[:, digit])
        left = rest
    flat = digits.reshape(-1)
    if left.any() or flat[count:].any():
        raise WireError(f"A code word is no group of a {code.n}:{code.m} mask.")
    return flat[:count]


def _numbers(bits: NDArray[np.uint8], count: int, code: Coding) -> Unsigned:
    """Return the number of each group; refuse groups without n survivors."""
    if code.m > _TABLE:
        flags = np.unpackbits(bits, count=count * code.m, bitorder="little")
        return _rank(flags.reshape(count, code.m), code)
    per_byte = 8 // code.m if 8 % code.m == 0 else 0
    values: Unsigned
    if per_byte:
        lanes = np.empty((bits.size, per_byte), dtype=np.uint8)
        for lane in range(per_byte):
            np.bitwise_and(bits >> (lane * code.m), (1 << code.m) - 1, out=lanes[:, lane])
        values = lanes.reshape(-1)[:count]
    else:
        flags = np.unpackbits(bits, count=count * code.m, bitorder="little")
        values = np.zeros(count, dtype=np.uint16)
        for lane in range(code.m):
            values |= np.left_shift(flags[lane :: code.m], lane, dtype=np.uint16)
    numbers = _tables(code)[0][values]
    if (numbers == _NO_GROUP).any():
        _refuse(code)
    return numbers


def _bits(numbers: Unsigned, code: Coding) -> NDArray[np.uint8]:
    """Return the packed mask of numbered groups."""
    if code.m > _TABLE:
        return np.packbits(_unrank(numbers.astype(np.uint64), code), bitorder="little")
    values = _tables(code)[1][numbers]
    if 8 % code.m == 0:
        per_byte = 8 // code.m
        bits = np.zeros(-(-values.size // per_byte), dtype=np.uint8)
        for lane in range(per_byte):
            part = values[lane::per_byte].astype(np.uint8)
            bits[: part.size] |= part << (lane * code.m)
        return bits
    flags = np.empty((values.size, code.m), dtype=np.uint8)
    for lane in range(code.m):
        np.bitwise_and(values >> lane, 1, out=flags[:, lane], casting="unsafe")
    return np.packbits(flags, bitorder="little")


@lru_cache
def _tables(code: Coding) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return the number of each group's bits, and the bits of each number."""
    flags = _unrank(np.arange(code.words, dtype=np.uint64), code)
    values = (flags.astype(np.uint32) << np.arange(code.m, dtype=np.uint32)).sum(axis=1)
    numbers = np.full(1 << code.m, _NO_GROUP)
    numbers[values] = np.arange(code.words)
    return numbers, values.astype(np.uint16)


@lru_cache
def _binomials(code: Coding) -> NDArray[np.uint64]:
    """Return C(i, k) for i < m and k <= n, shape (m, n + 1)."""
    rows = [[comb(i, k) for k in range(code.n + 1)] for i in range(code.m)]
    # Where k passes n - (m - i), C(i, k) may be too large; no group asks for those.
    return np.array([[min(c, (1 << 64) - 1) for c in row] for row in rows], dtype=np.uint64)


def _rank(flags: NDArray[np.uint8], code: Coding) -> NDArray[np.uint64]:
    """Return the number of each group, flags of shape (groups, m)."""
    numbers = np.zeros(len(flags), dtype=np.uint64)
    seen = np.zeros(len(flags), dtype=np.intp)
    if (flags.sum(axis=1, dtype=np.intp) != code.n).any():
        _refuse(code)
    for lane, binomials in enumerate(_binomials(code)):
        seen += flags[:, lane]
        numbers += binomials[seen] * flags[:, lane]
    return numbers


def _unrank(numbers: NDArray[np.uint64], code: Coding) -> NDArray[np.uint8]:
    """Return the flags of each number, shape (groups, m)."""
    flags = np.empty((numbers.size, code.m), dtype=np.uint8)
    left = numbers.copy()
    open_ = np.full(numbers.size, code.n, dtype=np.intp)
    for lane in reversed(range(code.m)):
        weight = _binomials(code)[lane][open_]
        survives = left >= weight
        left -= weight * survives
        open_ -= survives
        flags[:, lane] = survives
    return flags


def _refuse(code: Coding) -> NoReturn:
    raise WireError(
        f"A {code.n}:{code.m} mask must keep {code.n} of every {code.m} consecutive inputs; "
        "a group of this one does not."
    )
