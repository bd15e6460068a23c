"""The pruners: how each scores a weight, and a registry of them by name.

A pruner scores and leaves the selection to compiled loops on the CPU and to tensor operations on
any other device; both give the same mask, bit for bit.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from fedprune.errors import ConfigError, ModelError
from fedprune.pruning.ria import ria_scores
from fedprune.pruning.select import prune_lowest
from fedprune.pruning.spec import NOT_FINITE, MaskSpec
from fedprune.pruning.statistics import ColumnStatistics
from fedprune.wire.bitmask import BitMask


class Pruner(Protocol):
    """Turns a weight and the statistics of its inputs into a mask.

    Attributes
    ----------
    name : str
        The name that `pruner.name` chooses it by.
    needs_inputs : bool
        Whether `mask` needs statistics, that is calibration text.
    """

    name: str
    needs_inputs: bool

    def mask(self, weight: Tensor, stats: ColumnStatistics | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear.

        Parameters
        ----------
        weight : Tensor
            Shape (d_out, d_in), any floating dtype; scores are float32.
        stats : ColumnStatistics or None
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
    needs_inputs = False

    def mask(self, weight: Tensor, stats: ColumnStatistics | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear (see `Pruner.mask`); statistics are not used."""
        return _lowest(weight, torch.ones(weight.shape[1], device=weight.device), spec)


class WandaPruner:
    """Importance is magnitude times the norm of the input, ``|W_ij| * ||X_j||_2``.

    Wanda (Sun et al., arXiv 2306.11695, equation 1).
    """

    name = "wanda"
    needs_inputs = True

    def mask(self, weight: Tensor, stats: ColumnStatistics | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear (see `Pruner.mask`)."""
        return _lowest(weight, _norms(self.name, weight, stats), spec)


class RiaPruner:
    """Importance is a weight's share of its row and column, times the root of the input's norm.

    RIA (Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
    Models", ICLR 2024) with a = 0.5; see `fedprune.pruning.ria`. An N:M pattern is taken on the
    inputs as they are ordered: no channels are permuted.
    """

    name = "ria"
    needs_inputs = True

    def mask(self, weight: Tensor, stats: ColumnStatistics | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear (see `Pruner.mask`)."""
        scores = ria_scores(weight, _norms(self.name, weight, stats))
        return _lowest(scores, torch.ones(scores.shape[1], device=scores.device), spec)


PRUNERS: dict[str, Pruner] = {
    pruner.name: pruner for pruner in (MagnitudePruner(), WandaPruner(), RiaPruner())
}


def get_pruner(name: str) -> Pruner:
    """Return a pruner by name.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    if name not in PRUNERS:
        known = ", ".join(f"'{known}'" for known in sorted(PRUNERS))
        raise ConfigError(f"`pruner.name` must be one of {known}, got '{name}'.")
    return PRUNERS[name]


def _norms(name: str, weight: Tensor, stats: ColumnStatistics | None) -> Tensor:
    """Return the norms of the inputs, on the weight's device, if they are this linear's."""
    if stats is None:
        raise ModelError(f"The pruner '{name}' needs statistics of the inputs, got none.")
    if stats.sum_squares.shape != (weight.shape[1],):
        raise ModelError(
            f"The pruner '{name}' needs statistics of {weight.shape[1]} inputs, "
            f"got shape {tuple(stats.sum_squares.shape)}."
        )
    return stats.norms.to(weight.device)


def _lowest(weight: Tensor, norms: Tensor, spec: MaskSpec) -> BitMask:
    """Prune the lowest ``|weight| * norms`` of each comparison group."""
    compiled = _compiled()
    if weight.device.type == "cpu" and compiled is not None:
        return compiled(weight, norms, spec)
    scores = weight.detach().to(torch.float32).abs() * norms
    if not bool(torch.isfinite(scores).all()):
        raise ModelError(NOT_FINITE)
    return BitMask.from_bool(prune_lowest(scores, spec).cpu().numpy())


@cache
def _compiled() -> Callable[[Tensor, Tensor, MaskSpec], BitMask] | None:
    """Return the compiled CPU path, or None without numba; imported late, as numba is slow to."""
    try:
        from fedprune.pruning.kernels import wanda_mask
    except ImportError:
        return None
    return wanda_mask
