"""Answers as whole numbers of a fixed width, and their sums: what can be added up under masks.

An aggregator whose sums are of integers says how many words of how many bits a client's answer is
(:meth:`fedprune.methods.exchange.Aggregator.layout`), makes them of a checked answer and takes the
sums of all clients' words in place of the answers. Words add up modulo two to the power of their
bits, so that a negative number is its two's complement, and no order shows.

Floating-point numbers of either sign become words of 128 bits: counts of units of 2**-64, as in
:class:`fedprune.wire.sums.ExactSums`. What a number has below the unit is cut off, from each number
by itself: sums then are the same in any order, and with masks that cancel.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.privacy.secure_sums import BITS, WordSpec
from fedprune.wire.sums import UNIT_BITS, ExactSums

LIMIT = 2.0**62
"""What the magnitude of a number, or of a sum, stays below."""

_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


def to_fixed(values: NDArray[np.floating[Any]], clients: int = 1) -> NDArray[np.uint64]:
    """Return finite numbers as words of 128 bits, shape (count, 2).

    Raises WireError if one is not finite, or so large that the sum of so many clients' could
    overflow.
    """
    whole = values.astype(np.float64).reshape(-1)
    sizes = np.abs(whole)
    if not sizes.max(initial=0) < LIMIT / clients:  # so that NaN fails, too
        raise WireError(
            f"numbers to be added up over {clients} clients must be finite and below 2**62 / "
            f"{clients}."
        )
    upper = np.floor(sizes)
    high = upper.astype(np.uint64)
    low = np.ldexp(sizes - upper, UNIT_BITS).astype(np.uint64)
    return pair(*_negated(high, low, whole < 0))


def from_fixed(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the float64 numbers nearest to words of :func:`to_fixed` or their sums, flat."""
    exact, negative = _sizes(words)
    sizes = exact.to_float64()
    return np.where(negative, -sizes, sizes)


def to_float32(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Return the float32 numbers nearest to words of :func:`to_fixed` or their sums, flat."""
    exact, negative = _sizes(words)
    sizes = exact.to_float32()
    return np.where(negative, -sizes, sizes)


def _sizes(words: NDArray[np.uint64]) -> tuple[ExactSums, NDArray[np.bool_]]:
    """Return the magnitudes of words, and which of them are negative."""
    low, high = words[:, 0].copy(), words[:, 1].copy()
    negative = high >> np.uint64(63) > 0
    return ExactSums.from_words(*_negated(high, low, negative)), negative


def _negated(
    high: NDArray[np.uint64], low: NDArray[np.uint64], where: NDArray[np.bool_]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return 128-bit integers, those that are marked negated."""
    opposite = (low ^ _ALL) + np.uint64(1)
    carried = (high ^ _ALL) + (low == 0)
    return np.where(where, carried, high), np.where(where, opposite, low)


_ROOM = 1 << 62  # what a sum of words with a sign stays below

Words = dict[str, NDArray[Any]]
"""Name -> words: uint8 to uint64 of shape (count,), of 128 bits uint64 of shape (count, 2), the
lower half first."""


Layout = dict[str, WordSpec]
"""Name -> words, in the order in which they are sent."""


def counter_bits(most: int) -> int:
    """Return the bits of a word that counts up to ``most``."""
    return next(bits for bits in BITS if most >> bits == 0)


def pair(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return words of 128 bits of their halves, each of shape (count,)."""
    return np.stack((low, high), axis=1)


def prefixed(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the words, or the layouts, of several parts, each name behind that of its part."""
    return {f"{part}/{name}": one for part, own in parts.items() for name, one in own.items()}


def part_of(words: Mapping[str, NDArray[Any]], part: str) -> Words:
    """Return the words of one part of what :func:`prefixed` made."""
    prefix = f"{part}/"
    return {n.removeprefix(prefix): w for n, w in words.items() if n.startswith(prefix)}


def roomy(array: NDArray[np.int64], clients: int, what: str) -> NDArray[np.uint64]:
    """Return integers as :func:`signed`; WireError if so many clients' like them could overflow."""
    if array.size and max(abs(int(array.min())), int(array.max())) >= _ROOM // clients:
        raise WireError(f"'{what}' holds a number too large to be added up over {clients} clients.")
    return signed(array)


def signed(words: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return integers as words of 64 bits, negative ones as their two's complement."""
    return np.asarray(words, dtype=np.int64).view(np.uint64).reshape(-1)
