"""What can be done to a linear: pruned, its survivors scaled, or replaced by other values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.wire.bitmask import BitMask
from fedprune.wire.sparse import SparseWeight

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
