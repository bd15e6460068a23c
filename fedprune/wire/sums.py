"""Sums of float32 numbers without rounding, so that no order and no split of the data shows.

Floating-point addition rounds, and rounds differently when the terms come in another order or are
first added up in groups: the same texts on four clients and on one would give different sums, and
masks that differ in a few bits. Here a sum is an integer, a count of units of 2**-64. Every
non-negative float32 below 2**63 is one as it is, apart from what it has below the unit, which is
cut off from each number by itself, before it meets any other: a number's share of the sum depends
on nothing but the number. Integers add without rounding, and integer addition is associative and
commutative, so any order of additions and merges, over any number of clients and messages, gives
the same integer, and each rounded result is a function of that integer alone.

A count has four digits to the base 2**32, each in an int64 limb, so that carries can wait for about
2**31 additions. A sum saturates at 2**64 - 2**-64. That keeps the argument: of numbers that are
never negative, the smaller of sum and limit is the same in any order, too.

A client's sums travel as ``{input}.exact_squares`` (:mod:`fedprune.wire.inputs`), uint8 of shape
(17, d_in): how many bits each count has, then the bits, the highest first. All but the first rows
and the last that has anything are noise or zeros, so that packed they take 3.5 to 4.6 bytes a
column. All clients' sums go back as ``{input}.squares``, float32, with ``mask_checksums``, from
which a node makes the global masks itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError
from fedprune.wire.arrays import array_names
from fedprune.wire.inputs import (
    InputArrays,
    check_columns,
    check_input,
    check_nothing,
    decode_inputs,
    encode_inputs,
)

LIMBS = 4
BITS = 32 * LIMBS  # of a count
UNIT_BITS = 64  # a sum is its count times 2**-UNIT_BITS
LIMIT = 2.0**63  # of a single number
_DIGIT = 0xFFFFFFFF
_MOST_TERMS = (1 << 31) - 1  # so many digits, and a carry, are below 2**63


class ExactSums:
    """Running sums of float32 vectors, one exact sum a column.

    `limbs`: digits of the counts, the lowest first, shape (4, size); a digit may hold carries.
    """

    def __init__(self, size: int) -> None:
        self.limbs: NDArray[np.int64] = np.zeros((LIMBS, size), dtype=np.int64)
        self._terms = 0  # no limb is above _terms digits

    @classmethod
    def from_words(cls, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> Self:
        """Return the sums whose counts are ``high * 2**64 + low``, both of shape (size,)."""
        sums = cls(high.size)
        for number, limb in enumerate(sums.limbs):
            word = high if number >= 2 else low
            limb[:] = word >> np.uint64(number % 2 * 32) & np.uint64(_DIGIT)
        sums._terms = 1
        return sums

    @property
    def size(self) -> int:
        """Number of columns."""
        return int(self.limbs.shape[1])

    def add(self, values: NDArray[np.float32]) -> None:
        """Add a number from 0 to 2**63 to each sum; what is below 2**-64 is cut off.

        Raises WireError if the values are others; nothing is added then.
        """
        if values.dtype != np.float32 or values.shape != (self.size,):
            raise WireError(
                f"Exact sums of {self.size} columns take as many float32 numbers, got "
                f"{values.dtype} of shape {values.shape}."
            )
        # Written so that NaN fails, which is neither below nor above.
        if not (values.min(initial=0) >= 0 and values.max(initial=0) < LIMIT):
            raise WireError(
                "Exact sums take numbers from 0 to 2**63; among these there is a negative, larger "
                "or infinite one, or NaN."
            )
        self._make_room(1)
        # Every step is exact: powers of two, whole parts, and remainders of 24-bit numbers.
        rest = values.astype(np.float64) * 2.0 ** (UNIT_BITS - BITS + 32)
        for limb in self.limbs[::-1]:
            digit = np.floor(rest)
            limb += digit.astype(np.int64)
            rest -= digit
            rest *= 2.0**32
        self._terms += 1

    def merge(self, other: "ExactSums") -> None:
        """Add the sums of others, column by column.

        Raises WireError if they have another number of columns.
        """
        if other.size != self.size:
            raise WireError(f"Sums of {self.size} and of {other.size} columns do not add up.")
        other._make_room(_MOST_TERMS // 2)
        self._make_room(other._terms)
        self.limbs += other.limbs
        self._terms += other._terms

    def words(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the counts' upper and lower 64 bits, each uint64 of shape (size,)."""
        self._carry()
        digits, shift = self.limbs.astype(np.uint64), np.uint64(32)
        return digits[3] << shift | digits[2], digits[1] << shift | digits[0]

    def scaled_words(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
        """Return the counts shifted up until the highest bit is set, and their numbers of bits.

        Returns upper and lower 64 bits, uint64, and numbers of bits, int64 from 0 to 128, each of
        shape (size,). A sum is ``(high * 2**64 + low) * 2**(bits - 192)``.
        """
        high, low = self.words()
        upper = _bit_lengths(high)
        bits = np.where(upper > 0, upper + 64, _bit_lengths(low))
        return *shift_up(high, low, np.where(bits > 0, BITS - bits, 0)), bits

    def to_float64(self) -> NDArray[np.float64]:
        """Return the float64 number nearest to each sum, shape (size,)."""
        leading, exponents = self._leading()
        return np.ldexp(leading.astype(np.float64), exponents)

    def to_float32(self) -> NDArray[np.float32]:
        """Return the float32 number nearest to each sum, shape (size,)."""
        leading, exponents = self._leading()
        return np.ldexp(leading.astype(np.float32), exponents)

    def __eq__(self, other: object) -> bool:
        """Whether all sums are the same."""
        if not isinstance(other, ExactSums):
            return NotImplemented
        return all(map(np.array_equal, self.words(), other.words()))

    __hash__ = None  # type: ignore[assignment]  # equality looks at the sums: not hashable

    def _leading(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Return 64-bit numbers that round as the sums do, and the exponents of two to scale by.

        The lowest bit tells whether anything was left out: rounding needs to know no more.
        """
        high, low, bits = self.scaled_words()
        return high | (low != 0), (bits - (UNIT_BITS + 64)).astype(np.int32)

    def _make_room(self, terms: int) -> None:
        if self._terms + terms > _MOST_TERMS:
            self._carry()

    def _carry(self) -> None:
        """Bring all limbs below 2**32."""
        carry = np.zeros(self.size, dtype=np.int64)
        for limb in self.limbs:
            limb += carry
            np.right_shift(limb, 32, out=carry)
            limb &= _DIGIT
        self.limbs[:, carry > 0] = _DIGIT
        self._terms = 1


def shift_up(
    high: NDArray[np.uint64], low: NDArray[np.uint64], by: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Shift 128-bit numbers up by 0 to 127 bits each; return their upper and lower words."""
    far, left = by >= 64, (by % 64).astype(np.uint64)
    high, low = np.where(far, low, high), np.where(far, np.uint64(0), low)
    # In two steps: the part that moves over is 64 - left bits up, which may be all 64.
    over = low >> np.uint64(1) >> (np.uint64(63) - left)
    return high << left | over, low << left


def shift_down(
    high: NDArray[np.uint64], low: NDArray[np.uint64], by: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Shift 128-bit numbers down by 0 to 127 bits each; return their upper and lower words."""
    far, right = by >= 64, (by % 64).astype(np.uint64)
    high, low = np.where(far, np.uint64(0), high), np.where(far, high, low)
    over = high << np.uint64(1) << (np.uint64(63) - right)
    return high >> right, low >> right | over


def _bit_lengths(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the number of bits of each word, from its two halves, which float64 holds exactly."""
    upper, lower = words >> np.uint64(32), words & np.uint64(_DIGIT)
    lengths: NDArray[np.int32] = np.where(upper > 0, np.frexp(upper)[1] + 32, np.frexp(lower)[1])
    return lengths.astype(np.int64)


_WIDTH = BITS // 8  # bytes of a count
_SUMS, _POOLED, _CHECKSUMS = "exact_squares", "squares", "mask_checksums"


@dataclass(frozen=True)
class InputSums:
    """One client's sums of squares of an input.

    Raises WireError if there is no linear, or one twice, or sums of no tokens are not zero.
    """

    linears: tuple[str, ...]  # the linears that it enters, by their names inside the block
    sums: ExactSums  # sum over tokens of x_j**2, d_in columns
    tokens: int  # number of tokens summed; 0 where none came, of an expert for instance

    def __post_init__(self) -> None:
        """Refuse what is no input."""
        check_input(self.linears, self.tokens)
        check_nothing(self.tokens, self.sums.limbs)


def encode_sums(groups: Sequence[InputSums]) -> bytes:
    """Return the bytes of a block's sums, about 4.5 a column; nothing is rounded."""
    return encode_inputs(
        (group.linears, group.tokens, {_SUMS: _digits(group.sums)}) for group in groups
    )


def decode_sums(data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]) -> list[InputSums]:
    """Read a block's sums, which must be for exactly the linears of ``shapes``.

    `data`: may come from anyone; WireError if anything is damaged, missing, there twice or too
    much.
    """

    def read(one: InputArrays) -> InputSums:
        sums = _sums(one.take(_SUMS, "uint8", 1 + _WIDTH, one.width))
        return InputSums(one.linears, sums, one.tokens())

    return decode_inputs(data, shapes, [_SUMS], read)


def _digits(sums: ExactSums) -> NDArray[np.uint8]:
    """Return sums as numbers of bits, then the bits, highest first: uint8, shape (17, size)."""
    high, low, bits = sums.scaled_words()
    words = np.stack((high, low), axis=1).astype(">u8").view(np.uint8)
    return np.vstack((bits.astype(np.uint8), words.T))


def _sums(digits: NDArray[np.uint8]) -> ExactSums:
    """Return the sums of which :func:`_digits` came."""
    words = np.ascontiguousarray(digits[1:].T).view(">u8").astype(np.uint64)
    bits = digits[0].astype(np.int64)
    if bits.max(initial=0) > BITS:
        raise WireError(f"a sum has {BITS} bits at most, got {bits.max()}.")
    by = np.minimum(BITS - bits, BITS - 1)
    sums = ExactSums.from_words(*shift_down(words[:, 0], words[:, 1], by))
    # Each sum has one form: the first bit is set, and none after the last.
    for sent, expected in zip((*words.T, bits), sums.scaled_words(), strict=True):
        if not np.array_equal(sent, expected):
            raise WireError("a sum does not have as many bits as it says.")
    return sums


@dataclass(frozen=True, eq=False)
class PooledSums:
    """All clients' sums of squares of an input, from which a node makes the global masks itself.

    Raises WireError if the parts do not fit each other.
    """

    linears: tuple[str, ...]  # the linears that it enters, by their names inside the block
    # sum over clients and tokens of x_j**2, shape (d_in,), finite and not negative
    sums: NDArray[np.float32]
    tokens: int
    checksums: tuple[int, ...]  # for each linear the CRC-32 of its global mask's packed bits

    def __post_init__(self) -> None:
        """Refuse what cannot be pooled sums."""
        check_input(self.linears, self.tokens)
        check_columns(self.sums)
        check_nothing(self.tokens, self.sums)
        if len(self.checksums) != len(self.linears):
            raise WireError(
                f"{len(self.linears)} linears need as many checksums, got {len(self.checksums)}."
            )

    def tensor(self) -> Tensor:
        """Return the sums as a tensor on the CPU."""
        return torch.from_numpy(self.sums)


def is_pooled(data: bytes | memoryview) -> bool:
    """Whether a message says that it has pooled sums; :func:`decode_pooled` checks it."""
    return any(name.endswith(f".{_CHECKSUMS}") for name in array_names(data))


def encode_pooled(groups: Sequence[PooledSums]) -> bytes:
    """Return the bytes of a block's pooled sums, 4 a column."""
    return encode_inputs(
        (
            group.linears,
            group.tokens,
            {_POOLED: group.sums, _CHECKSUMS: np.array(group.checksums, dtype=np.uint32)},
        )
        for group in groups
    )


def decode_pooled(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> list[PooledSums]:
    """Read a block's pooled sums, which must be for exactly the linears of ``shapes``.

    `data`: may come from anyone; WireError if anything is damaged, missing, there twice or too
    much.
    """

    def read(one: InputArrays) -> PooledSums:
        sums = one.take(_POOLED, "float32", one.width).astype(np.float32)
        checksums = one.take(_CHECKSUMS, "uint32", len(one.linears))
        return PooledSums(one.linears, sums, one.tokens(), tuple(checksums.tolist()))

    return decode_inputs(data, shapes, [_POOLED, _CHECKSUMS], read)
