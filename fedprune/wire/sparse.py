"""A pruned weight with new values: which weights survive, and what they are.

Values are seen as integers of their size and are moved, never computed with, so that every bit of
them arrives, the sign of a zero included.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError
from fedprune.wire.bitmask import BitMask

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
