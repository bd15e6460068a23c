"""Rounding to the nearest code, with scales that spare the inputs that matter.

Each group's scale is the one that loses least of ``sum_j X_j^2 (w_j - q_j)^2``, where X_j^2 is the
column's sum of squares: the diagonal of what GPTQ minimises. This is how llama.cpp uses its
importance matrix, and all that it needs of a text is one number a column.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning.grid import Grid, fit, quantized, steps
from fedprune.pruning.groups import NOT_FINITE, MaskSpec
from fedprune.pruning.pruner import column_sums
from fedprune.pruning.statistics import Statistic
from fedprune.wire.masks import BitMask
from fedprune.wire.quantized import QuantizedWeight


def round_weight(
    weight: Tensor, squares: Tensor, grid: Grid, damping: float, mask: BitMask | None = None
) -> QuantizedWeight:
    """Quantise a weight, entry by entry.

    `weight`: shape (d_out, d_in), any floating dtype, which the scales then have; not changed.
    `squares`: sums of squared inputs, shape (d_in,), on the weight's device. `grid`: bits, groups
    and symmetry. `damping`: share of the mean of `squares` that is added to each: inputs that no
    text showed count a little. `mask`: the survivors, where weights are pruned too; the others
    become zero. Raises ModelError if weight or sums are no numbers, or groups do not make up a row.
    """
    rows, columns = weight.shape
    width = grid.width(columns)
    weights = weight.detach().to(torch.float32, copy=True)
    if mask is not None:
        weights.masked_fill_(~torch.from_numpy(mask.to_bool()).to(weights.device), 0.0)
    relative = squares.to(weights.device, torch.float64)
    if bool(relative.any()):
        relative = relative / relative.mean() + damping
    else:
        relative = torch.ones_like(relative)
    costs = relative.to(torch.float32)
    if not bool(torch.isfinite(weights).all() and torch.isfinite(costs).all()):
        raise ModelError(NOT_FINITE)
    grouped = weights.view(rows, -1, width)
    found = fit(grouped, costs.view(-1, width), grid, weight.dtype)
    scales, zeros = found.scales[..., None], found.zeros[..., None]
    codes = steps(grouped, scales, zeros, grid.half).add_(zeros).to(torch.int8)
    return quantized(codes.view(rows, columns), found, grid, weight.dtype, mask)


@dataclass(frozen=True)
class RoundingPruner:
    """Round to the nearest code; scales by the error weighted with the squares of the inputs."""

    grid: Grid  # bits, groups and symmetry
    damping: float  # see `round_weight`
    name: str = "rounding"
    needs: str = "columns"
    updates: bool = True

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> QuantizedWeight:
        """Return the quantised weight (see `Pruner.prune`); nothing is pruned."""
        squares = column_sums(self.name, weight, stats).sums
        return round_weight(weight, squares, self.grid, self.damping)
