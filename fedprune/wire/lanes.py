"""Small whole numbers, several in a byte, the first in its lowest bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError


def packed_length(count: int, bits: int) -> int:
    """Return the bytes that `count` numbers of `bits` bits take; 1, 2, 4 or 8 bits."""
    return -(-count * bits // 8)


def pack_lanes(numbers: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return whole numbers below ``2**bits`` packed into bytes, unused bits of the last zero."""
    lanes = np.zeros((packed_length(numbers.size, bits), 8 // bits), dtype=np.uint8)
    lanes.reshape(-1)[: numbers.size] = numbers
    packed = lanes[:, 0].copy()
    for lane in range(1, 8 // bits):
        packed |= lanes[:, lane] << bits * lane
    return packed


def unpack_lanes(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return what :func:`pack_lanes` packed, shape (count,).

    Raises WireError if an unused bit is set.
    """
    lanes = np.empty((packed.size, 8 // bits), dtype=np.uint8)
    for lane in range(8 // bits):
        np.bitwise_and(packed >> bits * lane, (1 << bits) - 1, out=lanes[:, lane])
    if lanes.reshape(-1)[count:].any():
        raise WireError("unused bits of packed numbers must be zero.")
    return lanes.reshape(-1)[:count]
