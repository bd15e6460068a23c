"""The compiled loop that adds a client's surviving weights to running sums, in fixed point.

Written for numba: the mask is followed without a branch, and the arithmetic vectorises.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.jit import jit

# Of a float64 between 2**52 and 2**53 the unit in the last place is 1. Adding this number rounds
# to a whole one, to even at halves, and leaves it in the lower bits, negative numbers included.
_ROUND = 1.5 * 2.0**52
_ROUND_BITS = int(np.float64(_ROUND).view(np.int64))
_TILE = 2048  # weights of a step: its buffers stay in a core's first cache


@jit
def fold(
    values: NDArray[np.float32],
    bits: NDArray[np.uint8],
    base: NDArray[np.float32],
    scale: float,
    weight: int,
    sums: NDArray[np.int64],
) -> None:
    """Add ``weight * round((value - base) * scale)`` to the sums of the weights that survive.

    Parameters
    ----------
    values : NDArray[np.float32]
        Of the survivors, in order; at least one.
    bits : NDArray[np.uint8]
        Packed mask, lowest bit first, with as many ones as there are values.
    base : NDArray[np.float32]
        Shape (numel,).
    scale : float
        A power of two; ``abs(value - base) * scale`` is at most 2**50.
    weight : int
        How often the client counts.
    sums : NDArray[np.int64]
        Shape (numel,), changed in place.
    """
    spread = np.empty(_TILE, np.float32)
    keep = np.empty(_TILE, np.float32)
    rounded = np.empty(_TILE, np.float64)
    codes = rounded.view(np.int64)
    place = 0
    last = values.size - 1
    for first in range(0, sums.size, _TILE):
        part = sums[first : first + _TILE]
        start = base[first : first + _TILE]
        for byte in range((part.size + 7) // 8):
            flags = bits[first // 8 + byte]
            for lane in range(8):
                spread[byte * 8 + lane] = values[min(place, last)]
                place += flags >> lane & 1
            for lane in range(8):
                keep[byte * 8 + lane] = flags >> lane & 1
        for j in range(part.size):
            # A pruned weight meets the value of another one; times zero it does not matter.
            difference = np.float64(spread[j]) - np.float64(start[j])
            rounded[j] = difference * (scale * keep[j]) + _ROUND
        for j in range(part.size):
            part[j] += (codes[j] - _ROUND_BITS) * weight
