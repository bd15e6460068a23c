"""The pruners that reconstruct: what survives makes up for what goes.

They need the second moments of the inputs. Wanda's masks need their diagonal only; these change
the surviving weights, or choose them, so that the linear's outputs change least.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning.alps import alps
from fedprune.pruning.pruners import Pruner, WandaPruner
from fedprune.pruning.sparsegpt import sparsegpt
from fedprune.pruning.sparseswaps import refit, sparseswaps
from fedprune.pruning.spec import NOT_FINITE, MaskSpec
from fedprune.pruning.statistics import ColumnStatistics, Kind, MomentStatistics, Statistics
from fedprune.wire.changes import Change, SparseWeight
from fedprune.wire.masks import BitMask

_MAX_SWAPS = 100  # of a row; the gain of later ones is small


@dataclass(frozen=True)
class SparseGptPruner:
    """Prune column by column and let the later columns make up for it.

    SparseGPT (Frantar and Alistarh, arXiv 2301.00774, algorithm 1).

    Parameters
    ----------
    damping : float
        Share of the mean squared input that is added to the diagonal.
    block_size : int
        Columns whose mask is chosen at once.
    """

    damping: float
    block_size: int
    name: str = "sparsegpt"
    needs: Kind = "moments"
    updates: bool = True

    def prune(self, weight: Tensor, stats: Statistics | None, spec: MaskSpec) -> SparseWeight:
        """Return survivors with new values (see `Pruner.prune`)."""
        found = _moments(self.name, weight, stats)
        new, mask = sparsegpt(weight, found.factor(self.damping), spec, self.block_size)
        return _sparse(weight, new, mask)


@dataclass(frozen=True)
class AlpsPruner:
    """Find the support by ADMM, then the best values on it by conjugate gradients.

    ALPS (Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large
    Language Models", NeurIPS 2024).
    """

    damping: float
    name: str = "alps"
    needs: Kind = "moments"
    updates: bool = True

    def prune(self, weight: Tensor, stats: Statistics | None, spec: MaskSpec) -> SparseWeight:
        """Return survivors with new values (see `Pruner.prune`)."""
        found = _moments(self.name, weight, stats)
        new, mask = alps(weight, found.moments, spec, self.damping)
        return _sparse(weight, new, mask)


@dataclass(frozen=True)
class SparseSwapsPruner:
    """Improve Wanda's mask by swaps within each row, then fit the values on it.

    SparseSwaps (arXiv 2512.10922) for the mask; least squares for the values.
    """

    damping: float
    name: str = "sparseswaps"
    needs: Kind = "moments"
    updates: bool = True

    def prune(self, weight: Tensor, stats: Statistics | None, spec: MaskSpec) -> SparseWeight:
        """Return survivors with new values (see `Pruner.prune`)."""
        found = _moments(self.name, weight, stats)
        start = torch.from_numpy(WandaPruner().prune(weight, found, spec).to_bool())
        start = start.to(weight.device)
        mask = sparseswaps(weight, found.moments, start, _MAX_SWAPS, spec.pattern)
        return _sparse(weight, refit(weight, found.moments, mask, self.damping), mask)


@dataclass(frozen=True)
class OnWhatIsKnown:
    """A solver where second moments are known, and Wanda where only column sums are.

    Parameters
    ----------
    pruner : Pruner
        Prunes wherever its statistics are there.
    """

    pruner: Pruner

    @property
    def name(self) -> str:
        """The solver's name."""
        return self.pruner.name

    @property
    def needs(self) -> Kind:
        """What the solver needs."""
        return self.pruner.needs

    @property
    def updates(self) -> bool:
        """Whether the solver changes survivors."""
        return self.pruner.updates

    def prune(self, weight: Tensor, stats: Statistics | None, spec: MaskSpec) -> Change:
        """Return what becomes of one linear (see `Pruner.prune`)."""
        if self.needs == "moments" and isinstance(stats, ColumnStatistics):
            return WandaPruner().prune(weight, stats, spec)
        return self.pruner.prune(weight, stats, spec)


def _moments(name: str, weight: Tensor, stats: Statistics | None) -> MomentStatistics:
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


def _sparse(weight: Tensor, new: Tensor, mask: Tensor) -> SparseWeight:
    """Return the survivors in the weight's own dtype."""
    if not bool(torch.isfinite(new).all()):
        raise ModelError(NOT_FINITE)
    kept = BitMask.from_bool(mask.cpu().numpy())
    return SparseWeight.from_dense(new.to(weight.dtype), kept)
