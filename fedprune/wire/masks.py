"""A mask held at one bit a weight, the only form in which masks are stored, sent and counted.

Weight ``i`` of the row-major weight matrix is bit ``i % 8`` (least significant first) of byte
``i // 8``; ``1`` means that the weight survives. Unused bits of the last byte are zero, so that
equal masks are equal bytes and a population count needs no correction.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.wire.arrays import Arrays, ArraySpec, encode_arrays


@dataclass(frozen=True, eq=False)
class BitMask:
    """The mask of one linear.

    Raises WireError if type, length or padding of `bits` do not fit `shape`.
    """

    bits: NDArray[np.uint8]  # packed mask, shape (ceil(d_out * d_in / 8),), padding bits zero
    shape: tuple[int, int]  # (d_out, d_in) of the weight

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


def encode_masks(masks: Mapping[str, BitMask]) -> bytes:
    """Return the bytes of a block's masks: a bit a weight, fewer where they have a pattern.

    `masks`: name of the linear inside the block -> mask of shape (d_out, d_in). Each is sent as
    ``{linear}.mask``, its bits, and ``{linear}.shape``, which bits do not tell.
    """
    return encode_arrays(mask_arrays(masks))


def decode_masks(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, BitMask]:
    """Read a block's masks, which must be for exactly the linears of ``shapes``.

    `data`: what :func:`encode_masks` made; may come from anyone. `shapes`: name of each expected
    linear -> (d_out, d_in). Returns the masks, in the order of ``shapes``; they may share memory
    with ``data``. Raises WireError if anything differs from what the model says: names, shapes,
    bits.
    """
    arrays = Arrays(data, mask_specs(shapes))
    masks = {name: take_mask(arrays, name, shape) for name, shape in shapes.items()}
    arrays.finish()
    return masks


def mask_arrays(masks: Mapping[str, BitMask]) -> dict[str, NDArray[Any]]:
    """Return the arrays that masks are sent as."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, mask in masks.items():
        arrays[f"{name}.mask"] = mask.bits
        arrays[f"{name}.shape"] = np.array(mask.shape, dtype=np.uint32)
    return arrays


def mask_specs(shapes: Mapping[str, tuple[int, int]]) -> dict[str, ArraySpec]:
    """Return what the arrays of masks of these shapes are."""
    bits = {f"{n}.mask": ArraySpec("uint8", (packed_size(prod(s)),)) for n, s in shapes.items()}
    return bits | {f"{name}.shape": ArraySpec("uint32", (2,)) for name in shapes}


def take_mask(arrays: Arrays, name: str, shape: tuple[int, int]) -> BitMask:
    """Return the mask of a linear from what came of a block."""
    specs = mask_specs({name: shape})
    bits, found = (arrays.take(one, spec) for one, spec in specs.items())
    if tuple(found.tolist()) != shape:
        raise WireError(
            f"linear '{name}': its mask must be of {shape[0]}x{shape[1]}, got "
            f"{found[0]}x{found[1]}."
        )
    try:
        return BitMask(bits, shape)
    except WireError as error:
        raise WireError(f"linear '{name}': {error}") from None
