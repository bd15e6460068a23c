"""What can be done to a linear: pruned, its survivors scaled or replaced, or quantised.

A block's changes are arrays that are called ``{linear}.{part}``:

==========  ======================  ================================================================
Part        Of                      Array
==========  ======================  ================================================================
``mask``,   every change            as :func:`fedprune.wire.masks.encode_masks` has them
``shape``
``total``   ``LinearUpdate``        uint32
``keeps``   ``LinearUpdate`` that   the survivors' counts, uint8: of 1, 2 or 4 bits, as many in a
            scales                  byte as fit, the first lowest; or of one, two or four bytes,
                                    shape (bytes, survivors), the lowest first
``values``  ``SparseWeight``        float32, bfloat16 or float16, shape (survivors,)
``bits``    ``QuantizedWeight``     uint8, 4 or 8
``codes``   ``QuantizedWeight``     the survivors' codes plus ``2**(bits-1)``, uint8: one or two in
                                    a byte, the first lowest
``scales``  ``QuantizedWeight``     float32, bfloat16 or float16, shape (d_out, groups)
``zeros``   ``QuantizedWeight``     the zeros of all groups as codes; only where not symmetric
==========  ======================  ================================================================
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError
from fedprune.wire.arrays import Arrays, ArraySpec, encode_arrays, most_bytes
from fedprune.wire.lanes import pack_lanes, packed_length, unpack_lanes
from fedprune.wire.masks import BitMask, mask_arrays, mask_specs, take_mask
from fedprune.wire.quantized import PARTS as QUANTIZED_PARTS
from fedprune.wire.quantized import QuantizedWeight, quantized_specs, take_quantized

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""The types that values can have."""

_STEP = 1 << 16  # values looked at at a time: they stay in a core's cache
_PARTS = ("mask", "shape", "total", "keeps", "values", *QUANTIZED_PARTS)

Words = NDArray[np.uint16] | NDArray[np.uint32]

_WORDS = {2: torch.uint16, 4: torch.uint32}
_EXPONENTS = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """The survivors of one linear and their values.

    Values are seen as integers of their size and are moved, never computed with, so that every bit
    of them arrives, the sign of a zero included.

    Raises WireError if the values are not those of such a mask.
    """

    mask: BitMask  # shape (d_out, d_in), True where a weight survives
    # for each survivor, in row-major order, its value; float32, bfloat16 or float16, shape
    # (survivors,), on the CPU, contiguous, finite. A survivor may be zero.
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
        if not _all_finite(self.words(), _EXPONENTS[values.dtype]):
            raise WireError("The values of a sparse weight must be finite; there is NaN or inf.")

    @classmethod
    def from_dense(cls, weight: Tensor, mask: BitMask) -> Self:
        """Return what a mask keeps of a weight.

        `weight`: shape (d_out, d_in), float32, bfloat16 or float16, any strides, on any device.
        `mask`: shape (d_out, d_in). Raises WireError if shapes or type do not fit, or a survivor is
        not finite.
        """
        # Imported late, here and below: numba is slow to.
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


def _all_finite(words: Words, exponent: int) -> bool:
    """Whether no word has all bits of the exponent set, as infinities and NaN have."""
    magnitude = words.dtype.type((1 << 8 * words.itemsize - 1) - 1)
    parts = (words[start : start + _STEP] for start in range(0, words.size, _STEP))
    return all((part & magnitude).max() < exponent for part in parts)


def _words(values: Tensor) -> Words:
    words: Words = values.detach().view(_WORDS[values.dtype.itemsize]).numpy()
    return words


Counts = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class LinearUpdate:
    """What becomes of one linear.

    Raises WireError if the counts are not those of such a mask.
    """

    mask: BitMask  # global mask, shape (d_out, d_in)
    # for each survivor, in row-major order, the weight of the clients that kept it; shape
    # (survivors,), none above ``total``. None leaves the survivors as they are.
    keeps: Counts | None
    total: int  # weight of all clients that voted, 1 <= total < 2**32

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


Change = BitMask | LinearUpdate | SparseWeight | QuantizedWeight
"""What is done to a linear: a mask alone leaves the survivors as they are."""


def mask_of(change: Change) -> BitMask:
    """Return the mask of a change."""
    return change if isinstance(change, BitMask) else change.mask


def checksum_of(change: Change) -> int:
    """Return a CRC-32 of a change that is a mask or a quantised weight; of others, of the mask."""
    return change.checksum if isinstance(change, QuantizedWeight) else mask_of(change).checksum


def keeps_survivors(change: Change) -> bool:
    """Whether a change does nothing to survivors."""
    return isinstance(change, BitMask) or (
        isinstance(change, LinearUpdate) and change.keeps is None
    )


def encode_update(updates: Mapping[str, Change]) -> bytes:
    """Return the bytes of a block's changes.

    `updates`: name of the linear inside the block -> what becomes of it.
    """
    arrays: dict[str, NDArray[Any] | Tensor] = {}
    arrays |= mask_arrays({name: mask_of(change) for name, change in updates.items()})
    for name, change in updates.items():
        if isinstance(change, SparseWeight):
            arrays[f"{name}.values"] = change.values
        elif isinstance(change, QuantizedWeight):
            arrays |= {f"{name}.{part}": array for part, array in change.arrays().items()}
        elif isinstance(change, LinearUpdate):
            arrays[f"{name}.total"] = np.array(change.total, dtype=np.uint32)
            if change.keeps is not None:
                arrays[f"{name}.keeps"] = _keeps_array(change.keeps, change.total)
    return encode_arrays(arrays)


def decode_update(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Change]:
    """Read a block's changes, which must be for exactly the linears of ``shapes``.

    `data`: what :func:`encode_update` made; may come from anyone. `shapes`: name of each expected
    linear -> (d_out, d_in). Returns the changes, in the order of ``shapes``, each of the kind that
    was sent. Masks may share memory with ``data``. Raises WireError if anything differs from what
    the model says: names, types, shapes, counts, or a value is not finite.
    """
    arrays = Arrays(data, (f"{name}.{part}" for name in shapes for part in _PARTS))
    changes = {name: _take_change(arrays, name, shape) for name, shape in shapes.items()}
    arrays.finish()
    return changes


def most_update_bytes(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the most bytes that a block's changes can take; shapes as :func:`decode_update`."""
    expected = mask_specs(shapes) | {f"{name}.total": ArraySpec("uint32") for name in shapes}
    for name, shape in shapes.items():
        # No count and no value is wider than this.
        values = {f"{name}.values": ArraySpec("float32", shape)}
        codes = quantized_specs(name, shape)
        expected |= dict.fromkeys([*values, *codes], ArraySpec("uint8", (0,)))
        expected |= values if _nbytes(values) > _nbytes(codes) else codes
    return most_bytes(expected)


def _nbytes(specs: Mapping[str, ArraySpec]) -> int:
    return sum(spec.nbytes for spec in specs.values())


def _take_change(arrays: Arrays, name: str, shape: tuple[int, int]) -> Change:
    mask = take_mask(arrays, name, shape)
    try:
        if f"{name}.values" in arrays.names:
            return _take_values(arrays, f"{name}.values", mask)
        if f"{name}.codes" in arrays.names:
            return take_quantized(arrays, name, mask)
        if f"{name}.total" in arrays.names:
            total = int(arrays.take(f"{name}.total", ArraySpec("uint32")))
            keeps = None
            if f"{name}.keeps" in arrays.names:
                keeps = _take_keeps(arrays, f"{name}.keeps", mask.survivors, total)
            return LinearUpdate(mask, keeps, total)
    except WireError as error:
        raise WireError(f"linear '{name}': {error}") from None
    return mask


def _take_values(arrays: Arrays, name: str, mask: BitMask) -> SparseWeight:
    announced = arrays.announced(name).dtype
    dtype = next((one for one in FLOATS if str(one) == f"torch.{announced}"), FLOATS[0])
    words = arrays.take(name, ArraySpec(str(dtype).removeprefix("torch."), (mask.survivors,)))
    return SparseWeight.from_words(words.view(f"<u{dtype.itemsize}"), dtype, mask)


def _keeps_spec(survivors: int, total: int) -> tuple[int, ArraySpec]:
    """Return the bits that a count takes, and what counts are as an array."""
    bits = next(bits for bits in (1, 2, 4, 8, 16, 32) if total < 1 << bits)
    shape = (packed_length(survivors, bits),) if bits < 8 else (bits // 8, survivors)
    return bits, ArraySpec("uint8", shape)


def _keeps_array(keeps: Counts, total: int) -> NDArray[np.uint8]:
    """Return counts as an array: several in a byte, or the bytes of all, the lowest first."""
    bits, spec = _keeps_spec(keeps.size, total)
    if bits < 8:
        return pack_lanes(keeps, bits)
    places = range(spec.shape[0])
    return np.stack([(keeps >> 8 * place).astype(np.uint8) for place in places])


def _take_keeps(arrays: Arrays, name: str, survivors: int, total: int) -> Counts:
    bits, spec = _keeps_spec(survivors, total)
    packed = arrays.take(name, spec)
    if bits < 8:
        return unpack_lanes(packed, bits, survivors)
    keeps = np.zeros(survivors, dtype=f"u{bits // 8}")
    for place, digits in enumerate(packed):
        keeps |= digits.astype(keeps.dtype) << 8 * place
    return keeps
