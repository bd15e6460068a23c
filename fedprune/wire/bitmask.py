"""A mask held at one bit a weight, the only form in which masks are stored, sent and counted.

Weight ``i`` of the row-major weight matrix is bit ``i % 8`` (least significant first) of byte
``i // 8``; ``1`` means that the weight survives. Unused bits of the last byte are zero, so that
equal masks are equal bytes and a population count needs no correction.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError


@dataclass(frozen=True, eq=False)
class BitMask:
    """The mask of one linear.

    Parameters
    ----------
    bits : NDArray[np.uint8]
        Packed mask, shape (ceil(d_out * d_in / 8),), padding bits zero.
    shape : tuple of int
        (d_out, d_in) of the weight.

    Raises
    ------
    WireError
        If type, length or padding of `bits` do not fit `shape`.
    """

    bits: NDArray[np.uint8]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        """Refuse bits that are no mask of this shape."""
        d_out, d_in = self.shape
        if d_out < 1 or d_in < 1:
            raise WireError(f"A mask's shape must be positive, got {d_out}x{d_in}.")
        expected = packed_size(self.numel)
        if self.bits.dtype != np.uint8 or self.bits.shape != (expected,):
            raise WireError(
                f"A mask of {d_out}x{d_in} is {expected} bytes of uint8, "
                f"got {self.bits.dtype} of shape {self.bits.shape}."
            )
        used = self.numel % 8
        if used and int(self.bits[-1]) >> used:
            raise WireError(
                f"A mask of {d_out}x{d_in} uses {used} bits of its last byte, "
                f"but a bit above them is set: 0x{int(self.bits[-1]):02x}."
            )

    @property
    def checksum(self) -> int:
        """CRC-32 of the packed bits, by which two sides tell whether they made the same mask."""
        return zlib.crc32(self.bits.tobytes())

    @classmethod
    def from_bool(cls, mask: NDArray[np.bool_]) -> "BitMask":
        """Pack a boolean mask of shape (d_out, d_in), True = survives."""
        d_out, d_in = mask.shape
        return cls(np.packbits(mask, bitorder="little"), (d_out, d_in))

    def to_bool(self) -> NDArray[np.bool_]:
        """Return the boolean mask, shape (d_out, d_in), True = survives."""
        flat = np.unpackbits(self.bits, count=self.numel, bitorder="little")
        return flat.view(np.bool_).reshape(self.shape)

    @property
    def numel(self) -> int:
        """Number of weights, d_out * d_in."""
        return self.shape[0] * self.shape[1]

    @property
    def survivors(self) -> int:
        """Number of weights that survive."""
        return popcount(self.bits)

    @property
    def sparsity(self) -> float:
        """Share of weights that are pruned."""
        return 1.0 - self.survivors / self.numel

    def row_survivors(self) -> NDArray[np.int64]:
        """Return the number of survivors of each row (output), shape (d_out,)."""
        d_out, d_in = self.shape
        ones: NDArray[np.uint8] | NDArray[np.bool_]
        if d_in % 64 == 0:
            ones = np.bitwise_count(self.bits.view(np.uint64).reshape(d_out, -1))
        else:
            ones = self.to_bool()
        survivors: NDArray[np.int64] = ones.sum(axis=1, dtype=np.int64)
        return survivors

    def __eq__(self, other: object) -> bool:
        """Whether both masks have the same shape and bits."""
        if not isinstance(other, BitMask):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.bits, other.bits)

    __hash__ = None  # type: ignore[assignment]  # equality looks at the bits: not hashable


def packed_size(numel: int) -> int:
    """Return the bytes that `numel` packed weights take."""
    return (numel + 7) // 8


def popcount(bits: NDArray[np.uint8]) -> int:
    """Return the number of set bits of a one-dimensional byte array."""
    whole = bits.size // 8 * 8
    words = bits[:whole].view(np.uint64)
    ones = np.bitwise_count(words).sum(dtype=np.int64)
    return int(ones + np.bitwise_count(bits[whole:]).sum(dtype=np.int64))
