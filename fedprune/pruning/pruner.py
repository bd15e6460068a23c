"""What a pruner is: a weight and the statistics of its inputs in, what becomes of it out."""

from typing import Protocol

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning.groups import NOT_FINITE, MaskSpec
from fedprune.pruning.statistics import ColumnStatistics, ColumnSums, MomentStatistics, Statistic
from fedprune.wire.changes import Change, SparseWeight
from fedprune.wire.masks import BitMask


class Pruner(Protocol):
    """Turns a weight and the statistics of its inputs into what becomes of it.

    Attributes
    ----------
    name : str
        The name that `pruner.name` chooses it by.
    needs : str
        What it must know of the inputs, that is of calibration text: the name of a statistic
        (`fedprune.pruning.statistics.get_kind`), "columns" or "moments" for instance, or "nothing".
    updates : bool
        Whether surviving weights change.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def needs(self) -> str:
        """See the class."""
        ...

    @property
    def updates(self) -> bool:
        """See the class."""
        ...

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> Change:
        """Return a mask, or survivors with new values where the pruner updates weights.

        Parameters
        ----------
        weight : Tensor
            Shape (d_out, d_in), any floating dtype; computed in float32.
        stats : Statistic or None
            What it needs of the inputs, on any device; None where it needs nothing.
        spec : MaskSpec
            Sparsity, pattern and comparison group.

        Raises
        ------
        ModelError
            If statistics are missing or of another size, a score is NaN or infinite, or an N:M
            pattern does not divide d_in. The text does not know the linear's name.
        """
        ...


def input_norms(name: str, weight: Tensor, stats: Statistic | None) -> Tensor:
    """Return the norms of the inputs, on the weight's device, if they are this linear's."""
    found = column_sums(name, weight, stats)
    if not isinstance(found, ColumnStatistics):
        raise ModelError(f"The pruner '{name}' needs sums of squared inputs, got others.")
    return found.norms.to(weight.device)


def column_sums(name: str, weight: Tensor, stats: Statistic | None) -> ColumnSums:
    """Return sums of one number a column, if they are this linear's; of moments the diagonal."""
    if isinstance(stats, MomentStatistics):
        stats = stats.columns
    if not isinstance(stats, ColumnSums):
        raise ModelError(f"The pruner '{name}' needs statistics of the inputs, got none.")
    if stats.sums.shape != (weight.shape[1],):
        raise ModelError(
            f"The pruner '{name}' needs statistics of {weight.shape[1]} inputs, "
            f"got shape {tuple(stats.sums.shape)}."
        )
    return stats


def second_moments(name: str, weight: Tensor, stats: Statistic | None) -> MomentStatistics:
    """Return second moments, if they are this linear's."""
    if not isinstance(stats, MomentStatistics):
        raise ModelError(f"The pruner '{name}' needs second moments of the inputs, got none.")
    size = weight.shape[1]
    if stats.moments.shape != (size, size):
        raise ModelError(
            f"The pruner '{name}' needs moments of {size} inputs, got shape "
            f"{tuple(stats.moments.shape)}."
        )
    return stats


def sparse_change(weight: Tensor, new: Tensor, mask: Tensor) -> SparseWeight:
    """Return the survivors in the weight's own dtype."""
    if not bool(torch.isfinite(new).all()):
        raise ModelError(NOT_FINITE)
    kept = BitMask.from_bool(mask.cpu().numpy())
    return SparseWeight.from_dense(new.to(weight.dtype), kept)
