"""Floating-point numbers of either sign as integers of 128 bits, so that they add up exactly.

A number is a count of units of 2**-64, as in :class:`fedprune.wire.sums.ExactSums`, and a negative
one is its two's complement. What a number has below the unit is cut off, from each number by
itself: sums then are the same in any order, and with masks that cancel.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.methods.word_sums import pair
from fedprune.wire.sums import UNIT_BITS, ExactSums

LIMIT = 2.0**62
"""What the magnitude of a number, or of a sum, stays below."""

_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


def to_fixed(values: NDArray[np.floating[Any]], clients: int = 1) -> NDArray[np.uint64]:
    """Return numbers as words of 128 bits, shape (count, 2).

    `values`: float32 or float64, of any shape, finite. `clients`: how many clients' numbers are
    added up at most. Raises WireError if a number is not finite, or so large that the sum could
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
