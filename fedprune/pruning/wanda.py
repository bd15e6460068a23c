"""The pruners that score a weight by itself and its input: magnitude and Wanda."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning.grid import Grid
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.pruner import Pruner, input_norms
from fedprune.pruning.rounding import round_weight
from fedprune.pruning.selection_kernels import prune_products
from fedprune.pruning.statistics import (
    NOTHING,
    ColumnStatistics,
    MomentStatistics,
    PairedMoments,
    Statistic,
    beside,
)
from fedprune.wire.changes import Change, SparseWeight
from fedprune.wire.masks import BitMask


class MagnitudePruner:
    """Importance is the weight's magnitude, ``|W_ij|``."""

    name = "magnitude"
    needs = NOTHING
    updates = False

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear (see `Pruner.prune`); statistics are not used."""
        return prune_products(weight, torch.ones(weight.shape[1], device=weight.device), spec)


@contextmanager
def able_pruner(
    pruner: Pruner, inputs: Statistic | None, outputs: Tensor | None, where: str
) -> Iterator[tuple[Pruner, Statistic | None]]:
    """Give what can prune a linear on what is known of it, and what is; name it in errors.

    `inputs`, `outputs`: statistics of its inputs, and second moments of its outputs, where they are
    known. `where`: what errors call it: those of `Pruner.prune` in the `with` statement's body.
    """
    try:
        yield _unseen(pruner, beside(inputs, outputs))
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error


def _unseen(pruner: Pruner, stats: Statistic | None) -> tuple[Pruner, Statistic | None]:
    """Return what can prune on statistics that may be of no token, and on which.

    No token is routed to some experts. Their weights go by magnitude; a pruner that changes or
    rounds survivors takes all inputs to be alike.
    """
    if stats is None or stats.tokens:
        return pruner, stats
    if pruner.updates and isinstance(stats, MomentStatistics):
        alike = torch.eye(len(stats.moments), device=stats.moments.device)
        return pruner, MomentStatistics(alike, 1)
    if pruner.updates and isinstance(stats, ColumnStatistics):
        return pruner, ColumnStatistics(torch.ones_like(stats.sums), 1)
    return MagnitudePruner(), None


class WandaPruner:
    """Importance is magnitude times the norm of the input, ``|W_ij| * ||X_j||_2``.

    Wanda (Sun et al., arXiv 2306.11695, equation 1).
    """

    name = "wanda"
    needs = "columns"
    updates = False

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear (see `Pruner.prune`)."""
        return prune_products(weight, input_norms(self.name, weight, stats), spec)


@dataclass(frozen=True)
class WithColumnsFallback:
    """A solver where second moments are known; where only column sums are, Wanda and rounding."""

    pruner: Pruner  # prunes wherever its statistics are there
    grid: Grid | None  # what is rounded to where the solver quantises
    damping: float  # see `fedprune.pruning.rounding.round_weight`

    @property
    def name(self) -> str:
        """The solver's name."""
        return self.pruner.name

    @property
    def needs(self) -> str:
        """What the solver needs."""
        return self.pruner.needs

    @property
    def updates(self) -> bool:
        """Whether the solver changes survivors."""
        return self.pruner.updates

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> Change:
        """Return what becomes of one linear (see `Pruner.prune`)."""
        if not isinstance(stats, ColumnStatistics) or self.needs == "columns":
            return self.pruner.prune(weight, stats, spec)
        mask = WandaPruner().prune(weight, stats, spec)
        if self.grid is None:
            return mask
        return round_weight(weight, stats.sums, self.grid, self.damping, mask)


@dataclass(frozen=True)
class DenseTarget:
    """A solver that comes close to the dense model's outputs instead of the dense weight's."""

    # prunes, or quantises, the weight that gives the dense model's outputs
    # (`MomentStatistics.target`)
    pruner: Pruner
    damping: float  # draws that weight towards the dense one
    needs: str = PairedMoments.name

    @property
    def name(self) -> str:
        """The solver's name."""
        return self.pruner.name

    @property
    def updates(self) -> bool:
        """Whether survivors change, which they do."""
        return True

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> Change:
        """Return what becomes of one linear (see `Pruner.prune`)."""
        if not isinstance(stats, MomentStatistics) or stats.deviation is None:
            return self.pruner.prune(weight, stats, spec)
        target = stats.target(weight, self.damping)
        change = self.pruner.prune(target, stats, spec)
        if isinstance(change, SparseWeight):
            return SparseWeight(change.mask, change.values.to(weight.dtype))
        # The scales of quantised weights have the type of the weight that they are found for.
        same = weight.dtype == target.dtype
        return change if same else self.pruner.prune(target.to(weight.dtype), stats, spec)
