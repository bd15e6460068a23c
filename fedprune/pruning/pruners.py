"""The pruners that only choose: how each scores a weight.

A pruner scores and leaves the selection to compiled loops on the CPU, to Triton on a GPU that has
it, and to tensor operations elsewhere; all give the same mask, bit for bit.
"""

from typing import Protocol

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning import select
from fedprune.pruning.ria import ria_scores
from fedprune.pruning.spec import NOT_FINITE, MaskSpec
from fedprune.pruning.statistics import Kind, MomentStatistics, Statistics
from fedprune.wire.changes import Change
from fedprune.wire.masks import BitMask


class Pruner(Protocol):
    """Turns a weight and the statistics of its inputs into what becomes of it.

    Attributes
    ----------
    name : str
        The name that `pruner.name` chooses it by.
    needs : {"nothing", "columns", "moments"}
        What it must know of the inputs, that is of calibration text.
    updates : bool
        Whether surviving weights change.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def needs(self) -> Kind:
        """See the class."""
        ...

    @property
    def updates(self) -> bool:
        """See the class."""
        ...

    def prune(self, weight: Tensor, stats: Statistics | None, spec: MaskSpec) -> Change:
        """Return a mask, or survivors with new values where the pruner updates weights.

        Parameters
        ----------
        weight : Tensor
            Shape (d_out, d_in), any floating dtype; computed in float32.
        stats : ColumnStatistics, MomentStatistics or None
            Statistics of the inputs, on any device.
        spec : MaskSpec
            Sparsity, pattern and comparison group.

        Raises
        ------
        ModelError
            If statistics are missing or of another size, a score is NaN or infinite, or an N:M
            pattern does not divide d_in. The text does not know the linear's name.
        """
        ...


class MagnitudePruner:
    """Importance is the weight's magnitude, ``|W_ij|``."""

    name = "magnitude"
    needs: Kind = "nothing"
    updates = False

    def prune(self, weight: Tensor, stats: Statistics | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear (see `Pruner.prune`); statistics are not used."""
        return prune_products(weight, torch.ones(weight.shape[1], device=weight.device), spec)


class WandaPruner:
    """Importance is magnitude times the norm of the input, ``|W_ij| * ||X_j||_2``.

    Wanda (Sun et al., arXiv 2306.11695, equation 1).
    """

    name = "wanda"
    needs: Kind = "columns"
    updates = False

    def prune(self, weight: Tensor, stats: Statistics | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear (see `Pruner.prune`)."""
        return prune_products(weight, input_norms(self.name, weight, stats), spec)


class RiaPruner:
    """Importance is a weight's share of its row and column, times the root of the input's norm.

    RIA (Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
    Models", ICLR 2024) with a = 0.5; see `fedprune.pruning.ria`. An N:M pattern is taken on the
    inputs as they are ordered: no channels are permuted.
    """

    name = "ria"
    needs: Kind = "columns"
    updates = False

    def prune(self, weight: Tensor, stats: Statistics | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear (see `Pruner.prune`)."""
        scores = ria_scores(weight, input_norms(self.name, weight, stats))
        return prune_products(scores, torch.ones(scores.shape[1], device=scores.device), spec)


def input_norms(name: str, weight: Tensor, stats: Statistics | None) -> Tensor:
    """Return the norms of the inputs, on the weight's device, if they are this linear's."""
    if stats is None:
        raise ModelError(f"The pruner '{name}' needs statistics of the inputs, got none.")
    if isinstance(stats, MomentStatistics):
        stats = stats.columns
    if stats.sum_squares.shape != (weight.shape[1],):
        raise ModelError(
            f"The pruner '{name}' needs statistics of {weight.shape[1]} inputs, "
            f"got shape {tuple(stats.sum_squares.shape)}."
        )
    return stats.norms.to(weight.device)


def prune_products(weight: Tensor, norms: Tensor, spec: MaskSpec) -> BitMask:
    """Prune the lowest ``|weight| * norms`` of each comparison group.

    The fast paths are imported late: numba and Triton are slow to, and not always there.
    """
    if select.runs_compiled(weight):
        from fedprune.pruning.kernels import wanda_mask

        return wanda_mask(weight, norms, spec)
    if select.runs_triton(weight):
        from fedprune.pruning import triton_masks

        return triton_masks.wanda_mask(weight, norms, spec)
    scores = weight.detach().to(torch.float32).abs() * norms
    if not bool(torch.isfinite(scores).all()):
        raise ModelError(NOT_FINITE)
    return BitMask.from_bool(select.prune_lowest(scores, spec).cpu().numpy())
