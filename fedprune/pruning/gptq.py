"""GPTQ: round column after column, and let the columns to the right make up for the loss.

Frantar et al., arXiv 2210.17323, algorithm 1. A scale is chosen of its group's weights when they
are reached, by what rounding costs once later weights have made up for it. With `act_order` the
columns of the largest inputs come first and scales are chosen before, so that groups stay of
consecutive inputs and a checkpoint needs no order of columns (compressed-tensors calls this
`actorder: weight`, and has dropped the other kind).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.pruning.grid import Grid, fit, quantized
from fedprune.pruning.groups import NOT_FINITE, MaskSpec
from fedprune.pruning.hessian import Factor
from fedprune.pruning.pruner import second_moments
from fedprune.pruning.statistics import Statistic
from fedprune.pruning.sweep import Codes, Sweep
from fedprune.wire.quantized import QuantizedWeight

_BLOCK = 128  # columns whose errors the later ones are told together
_ALL = MaskSpec(0.0, Pattern(), "row")


def gptq(
    weight: Tensor, factor: Factor, grid: Grid, order: Tensor | None = None
) -> QuantizedWeight:
    """Return the quantised weight.

    `weight`: shape (d_out, d_in), any floating dtype, which the scales then have; on the factor's
    device; not changed. Weights of inputs that no text showed are rounded, no others make up for
    them. `factor`: of the linear's inputs, in the order in which they are visited (see
    `fedprune.pruning.hessian.inverse_factor`). `grid`: bits, groups and symmetry. `order`: the
    inputs in that order, int64, shape (d_in,); None: as they are. Raises ModelError if a weight is
    NaN or infinite, or groups do not make up a row.
    """
    weights = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    weights.copy_(weight.detach())
    if not bool(torch.isfinite(weights).all()):
        raise ModelError(NOT_FINITE)
    upper, codes = factor.upper.contiguous(), Codes.empty(grid, weight.dtype, weights)
    if order is not None:
        width = grid.width(weights.shape[1])
        costs = torch.empty_like(weights[0])
        costs[order] = upper.diagonal().square().reciprocal()
        grouped = weights.view(len(weights), -1, width)
        found = fit(grouped, (costs / costs.mean()).view(-1, width), grid, weight.dtype)
        codes = Codes(grid, weight.dtype, found, codes.codes, order // width)
        weights = weights[:, order]
    sweep = Sweep(weights, torch.ones_like(weights, dtype=torch.bool), upper, _ALL, codes)
    sweep.run(_BLOCK)
    if not bool(torch.isfinite(weights).all()):
        raise ModelError(NOT_FINITE)
    whole = codes.codes
    if order is not None:
        whole = torch.empty_like(whole)
        whole[:, order] = codes.codes
    return quantized(whole, codes.fit, grid, weight.dtype)


@dataclass(frozen=True)
class GptqPruner:
    """Round column by column and let the later columns make up for it.

    GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1).
    """

    grid: Grid  # bits, groups and symmetry
    damping: float  # share of the mean squared input that is added to the diagonal
    act_order: bool  # whether the columns of the largest inputs come first
    name: str = "gptq"
    needs: str = "moments"
    updates: bool = True

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> QuantizedWeight:
        """Return the quantised weight (see `Pruner.prune`); nothing is pruned."""
        found = second_moments(self.name, weight, stats)
        if not self.act_order:
            return gptq(weight, found.factor(self.damping), self.grid)
        order, factor = found.ordered_factor(self.damping)
        return gptq(weight, factor, self.grid, order)
