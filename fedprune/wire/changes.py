"""A pruned weight with new values: which weights survive, and what they are.

Values are seen as integers of their size and are moved, never computed with, so that every bit of
them arrives, the sign of a zero included.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.errors import WireError
from fedprune.wire.arrays import Kind, Reader, seal
from fedprune.wire.masks import BitMask, decode_block, encode_block, packed_size

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""The types that values can have; their order is part of the wire format."""

Words = NDArray[np.uint16] | NDArray[np.uint32]

_WORDS = {2: torch.uint16, 4: torch.uint32}
_EXPONENTS = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """The survivors of one linear and their values.

    Parameters
    ----------
    mask : BitMask
        Shape (d_out, d_in), True where a weight survives.
    values : Tensor
        For each survivor, in row-major order, its value; float32, bfloat16 or float16, shape
        (survivors,), on the CPU, contiguous, finite. A survivor may be zero.

    Raises
    ------
    WireError
        If the values are not those of such a mask.
    """

    mask: BitMask
    values: Tensor

    def __post_init__(self) -> None:
        """Refuse values that do not belong to the mask."""
        values, survivors = self.values, self.mask.survivors
        _check_float(values)
        if values.shape != (survivors,) or values.device.type != "cpu":
            raise WireError(
                f"A weight of {survivors} survivors needs as many values on the CPU, got shape "
                f"{tuple(values.shape)} on {values.device}."
            )
        if not values.is_contiguous():
            raise WireError("The values of a sparse weight must be contiguous.")
        # Imported late, here and below: numba is slow to.
        from fedprune.wire.loops import all_finite

        if not all_finite(self.words(), _EXPONENTS[values.dtype]):
            raise WireError("The values of a sparse weight must be finite; there is NaN or inf.")

    @classmethod
    def from_dense(cls, weight: Tensor, mask: BitMask) -> Self:
        """Return what a mask keeps of a weight.

        Parameters
        ----------
        weight : Tensor
            Shape (d_out, d_in), float32, bfloat16 or float16, any strides, on any device.
        mask : BitMask
            Shape (d_out, d_in).

        Raises
        ------
        WireError
            If shapes or type do not fit, or a survivor is not finite.
        """
        from fedprune.wire.loops import compress

        _check_float(weight)
        if tuple(weight.shape) != mask.shape:
            raise WireError(
                f"A mask of {mask.shape[0]}x{mask.shape[1]} does not fit a weight of shape "
                f"{tuple(weight.shape)}."
            )
        words = _words(weight.detach().cpu().contiguous().reshape(-1))
        kept = np.empty(mask.survivors + 1, dtype=words.dtype)
        compress(words, mask.bits, kept)
        return cls(mask, torch.from_numpy(kept[:-1]).view(weight.dtype))

    @classmethod
    def from_words(cls, words: NDArray[np.generic], dtype: torch.dtype, mask: BitMask) -> Self:
        """Return a weight from its values as integers (:meth:`words`), of either byte order."""
        native = words.astype(f"=u{dtype.itemsize}")
        return cls(mask, torch.from_numpy(native).view(dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the weight."""
        return self.mask.shape

    def words(self) -> Words:
        """Return the values as unsigned integers of their size, shape (survivors,)."""
        return _words(self.values)

    def dense(self) -> Tensor:
        """Return the weight with zeros where it is pruned, (d_out, d_in), on the CPU."""
        from fedprune.wire.loops import expand

        kept = self.words()
        padded: Words = np.zeros(kept.size + 1, dtype=kept.dtype)
        padded[:-1] = kept
        words: Words = np.empty(self.mask.numel, dtype=kept.dtype)
        expand(padded, self.mask.bits, words)
        return torch.from_numpy(words).view(self.values.dtype).view(self.shape)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same bit for bit: mask, type and values."""
        if not isinstance(other, SparseWeight):
            return NotImplemented
        same = self.mask == other.mask and self.values.dtype == other.values.dtype
        return same and np.array_equal(self.words(), other.words())

    __hash__ = None  # type: ignore[assignment]  # equality looks at the values: not hashable


def _check_float(values: Tensor) -> None:
    if values.dtype not in FLOATS:
        known = ", ".join(str(dtype) for dtype in FLOATS)
        raise WireError(f"A sparse weight is one of {known}, got {values.dtype}.")


def _words(values: Tensor) -> Words:
    words: Words = values.detach().view(_WORDS[values.dtype.itemsize]).numpy()
    return words


Counts = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class LinearUpdate:
    """What becomes of one linear.

    Parameters
    ----------
    mask : BitMask
        Global mask, shape (d_out, d_in).
    keeps : NDArray[np.uint8 | np.uint16 | np.uint32] or None
        For each survivor, in row-major order, the weight of the clients that kept it; shape
        (survivors,), none above ``total``. None leaves the survivors as they are.
    total : int
        Weight of all clients that voted, 1 <= total < 2**32.

    Raises
    ------
    WireError
        If the counts are not those of such a mask.
    """

    mask: BitMask
    keeps: Counts | None
    total: int

    def __post_init__(self) -> None:
        """Refuse counts that do not belong to the mask."""
        if not 1 <= self.total < 2**32:
            raise WireError(f"An update's total must be from 1 to 2**32 - 1, got {self.total}.")
        if self.keeps is None:
            return
        if self.keeps.dtype.kind != "u" or self.keeps.shape != (self.mask.survivors,):
            raise WireError(
                f"An update of {self.mask.survivors} survivors needs as many unsigned counts, got "
                f"{self.keeps.dtype} of shape {self.keeps.shape}."
            )
        most = int(self.keeps.max(initial=0))
        if most > self.total:
            raise WireError(f"A survivor cannot be kept by {most} of {self.total}.")

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the weight."""
        return self.mask.shape

    def factors(self) -> NDArray[np.float32] | None:
        """Return what each weight is multiplied by, float32 of the mask's shape; None if nothing.

        The factor of a survivor is (m - v)/m, with v votes of m (FedPrLLM, arXiv 2505.13547); a
        pruned weight's is 0.
        """
        if self.keeps is None:
            return None
        factors = np.zeros(self.mask.shape, dtype=np.float32)
        factors[self.mask.to_bool()] = self.keeps / np.float64(self.total)
        return factors

    def __eq__(self, other: object) -> bool:
        """Whether both do the same to a weight."""
        if not isinstance(other, LinearUpdate):
            return NotImplemented
        if self.keeps is None or other.keeps is None:
            same = self.keeps is other.keeps
        else:
            same = np.array_equal(self.keeps, other.keeps)
        return same and self.total == other.total and self.mask == other.mask

    __hash__ = None  # type: ignore[assignment]  # equality looks at arrays: not hashable


Change = BitMask | LinearUpdate | SparseWeight
"""What is done to a linear: a mask alone leaves the survivors as they are."""


def mask_of(change: Change) -> BitMask:
    """Return the mask of a change."""
    return change if isinstance(change, BitMask) else change.mask


def keeps_survivors(change: Change) -> bool:
    """Whether a change does nothing to survivors."""
    return isinstance(change, BitMask) or (
        isinstance(change, LinearUpdate) and change.keeps is None
    )


_KIND = Kind("an update", b"FPUP", 2)
_SIZE = struct.Struct("<I")  # bytes of the masks
_LINEAR = struct.Struct("<BI")  # kind, number
_MASK, _PLAIN, _SCALED, _VALUES = range(4)
_FRAME_BYTES = 512  # around one linear's change, and around all of them
_WIDEST = 4  # bytes of a value or a count


def encode_update(updates: Mapping[str, Change], pattern: Pattern = UNSTRUCTURED) -> bytes:
    """Return the bytes of a block's changes, in the order given.

    Parameters
    ----------
    updates : Mapping[str, BitMask or LinearUpdate or SparseWeight]
        Name of the linear inside the block -> what becomes of it.
    pattern : Pattern
        What all masks are known to be, as in :func:`fedprune.wire.masks.encode_block`.
    """
    masks = encode_block({name: mask_of(change) for name, change in updates.items()}, pattern)
    parts: list[bytes | memoryview] = [_SIZE.pack(len(masks)), masks]
    for change in updates.values():
        parts += _linear_parts(change)
    return seal(_KIND, parts)


def decode_update(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Change]:
    """Read a block's changes, which must be for the linears of ``shapes`` in the same order.

    Parameters
    ----------
    data : bytes or memoryview
        What :func:`encode_update` made; may come from anyone.
    shapes : Mapping[str, tuple[int, int]]
        Name of each expected linear -> (d_out, d_in).

    Returns
    -------
    dict[str, BitMask or LinearUpdate or SparseWeight]
        The changes, in the order of ``shapes``, each of the kind that was sent. Masks may share
        memory with ``data``.

    Raises
    ------
    WireError
        If anything differs from what the model says: length, checksum, names, shapes, counts, or
        a value is not finite.
    """
    reader = Reader(data, _KIND)
    (size,) = reader.unpack(_SIZE, "the size of the masks")
    masks = decode_block(reader.take(size, "the masks"), shapes)
    changes: dict[str, Change] = {}
    for name, mask in masks.items():
        try:
            changes[name] = _read_linear(reader, mask)
        except WireError as error:
            raise WireError(f"linear '{name}': {error}") from None
    reader.finish()
    return changes


def most_update_bytes(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the most bytes that a block's changes can take; shapes as :func:`decode_update`."""
    return sum(
        _FRAME_BYTES + len(name.encode()) + packed_size(rows * columns) + _WIDEST * rows * columns
        for name, (rows, columns) in shapes.items()
    )


def _linear_parts(change: Change) -> list[bytes | memoryview]:
    if isinstance(change, BitMask):
        return [_LINEAR.pack(_MASK, 0)]
    if isinstance(change, SparseWeight):
        words = change.words()
        code = FLOATS.index(change.values.dtype) + 1
        little = words.astype(words.dtype.newbyteorder("<"), copy=False)
        return [_LINEAR.pack(_VALUES, code), little.data]
    if change.keeps is None:
        return [_LINEAR.pack(_PLAIN, change.total)]
    planes = [
        np.packbits(change.keeps >> digit & 1, bitorder="little").tobytes()
        for digit in range(change.total.bit_length())
    ]
    return [_LINEAR.pack(_SCALED, change.total), *planes]


def _read_linear(reader: Reader, mask: BitMask) -> Change:
    kind, number = reader.unpack(_LINEAR, "its kind")
    if kind == _PLAIN:
        return LinearUpdate(mask, None, number)
    if kind == _SCALED:
        return _read_scaled(reader, mask, number)
    if kind == _VALUES:
        return _read_values(reader, mask, number)
    if (kind, number) != (_MASK, 0):
        raise WireError(f"it must be of kind 0 to 3, and 0 of number 0, got {kind} of {number}.")
    return mask


def _read_scaled(reader: Reader, mask: BitMask, total: int) -> LinearUpdate:
    survivors, plane_size = mask.survivors, packed_size(mask.survivors)
    planes = reader.take(plane_size * total.bit_length(), "its counts")
    keeps = np.zeros(survivors, dtype=np.min_scalar_type(total))
    for digit in range(total.bit_length()):
        packed = np.frombuffer(planes, np.uint8)[digit * plane_size : (digit + 1) * plane_size]
        ones = np.unpackbits(packed, bitorder="little")
        if ones[survivors:].any():
            raise WireError("unused bits of its counts must be zero.")
        keeps |= ones[:survivors].astype(keeps.dtype) << digit
    return LinearUpdate(mask, keeps, total)


def _read_values(reader: Reader, mask: BitMask, code: int) -> SparseWeight:
    if not 1 <= code <= len(FLOATS):
        raise WireError(f"its values must be of type 1 to {len(FLOATS)}, got {code}.")
    dtype = FLOATS[code - 1]
    words = reader.array(f"<u{dtype.itemsize}", mask.survivors, "its values")
    return SparseWeight.from_words(words, dtype, mask)
