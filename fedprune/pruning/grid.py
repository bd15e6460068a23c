"""The numbers that a quantised weight can be: for each group of inputs a scale and a zero.

A weight w is kept as the whole number ``q = clamp(round(w / scale) + zero)`` of a few bits and
stands for ``(q - zero) * scale``. The scale of a group is chosen among shares of the one that
spans it, by the error that rounding to it makes, each column's weighted with its cost.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import ModelError, WireError
from fedprune.jit import jit
from fedprune.pruning import selection
from fedprune.pruning.groups import NOT_FINITE
from fedprune.wire.masks import BitMask
from fedprune.wire.quantized import QuantizedWeight

# Of the scale that spans a group. Clipping the largest weight pays where the others gain by more.
_SHARES = tuple(1 - step / 40 for step in range(25))


@dataclass(frozen=True)
class Grid:
    """What a weight is quantised to."""

    bits: int
    group_size: int | None  # consecutive inputs that share a scale; None: a whole row
    symmetric: bool  # whether the zero is in the middle of the codes; else each group has its own

    @property
    def half(self) -> int:
        """Codes are from minus this to one below it."""
        return 1 << self.bits - 1

    def width(self, d_in: int) -> int:
        """Return the inputs of a group.

        Raises ModelError if groups of that size do not make up a row.
        """
        size = self.group_size or d_in
        if d_in % size:
            raise ModelError(
                f"`pruner.group_size` must divide the inputs of every matrix, got {size} for one "
                f"of {d_in}. Set `pruner.group_size` to a size that does, or to null for one "
                "scale a row."
            )
        return size


@dataclass(frozen=True, eq=False)
class Fit:
    """Scales and zeros of a matrix, as many columns as a row has groups."""

    # scales, zeros: float32, shape (d_out, groups); scales are numbers of the weight's own type
    scales: Tensor
    zeros: Tensor


def fit(weights: Tensor, costs: Tensor, grid: Grid, dtype: torch.dtype) -> Fit:
    """Choose the scale and zero of each group.

    The one with the least ``sum_j costs_j (w_j - (q_j - zero) scale)^2`` among 25 that span from
    the whole group down to 0.4 of it; the largest of equals. A symmetric scale spans the largest
    weight of either sign, the other spans the smallest and the largest, and zero.

    `weights`: float32, shape (d_out, groups, size), contiguous. `costs`: float32, shape (groups,
    size), not negative. `grid`: bits and symmetry. Raises ModelError if a weight is NaN or
    infinite, or too large for a scale of that type.
    """
    half = grid.half
    low, high = weights.amin(-1).clamp_max_(0), weights.amax(-1).clamp_min_(0)
    if grid.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    shares = torch.tensor(_SHARES, device=weights.device)
    # The first share is 1; a group of zeros, or below what the type holds, has any scale.
    scales = ((high - low) / (2 * half - 1))[..., None].mul(shares).to(dtype).float()
    scales.masked_fill_(scales == 0, 1.0)
    if not bool(torch.isfinite(scales).all()):
        raise ModelError(NOT_FINITE)
    zeros = torch.zeros_like(scales)
    if not grid.symmetric:
        zeros = (-half - (low[..., None] * shares / scales)).round_().clamp_(-half, half - 1)
    if selection.runs_compiled(weights):
        best = torch.empty(weights.shape[:2], dtype=torch.int64)
        cheapest(weights.numpy(), costs.numpy(), scales.numpy(), zeros.numpy(), half, best.numpy())
    else:
        best = _cheapest(weights, costs, scales, zeros, half)
    chosen = best[..., None]
    return Fit(scales.gather(-1, chosen)[..., 0], zeros.gather(-1, chosen)[..., 0])


def _cheapest(weights: Tensor, costs: Tensor, scales: Tensor, zeros: Tensor, half: int) -> Tensor:
    """Return which scale of each group costs least: the definition, and the path of devices."""
    errors = torch.empty_like(scales)
    for place in range(scales.shape[-1]):
        scale, zero = scales[..., place, None], zeros[..., place, None]
        lost = weights - (steps(weights, scale, zero, half) * scale)
        errors[..., place] = (lost.square_() * costs).sum(-1)
    return errors.argmin(-1)


def steps(weights: Tensor, scale: Tensor, zero: Tensor, half: int) -> Tensor:
    """Return how many scales each weight becomes, ``q - zero``, float32."""
    return ((weights / scale).round_() + zero).clamp_(-half, half - 1) - zero


@jit
def cheapest(
    weights: NDArray[np.float32],
    costs: NDArray[np.float32],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    half: int,
    best: NDArray[np.int64],
) -> None:
    """Write which scale of each group costs least, the first of equals.

    `weights`: shape (d_out, groups, size). `costs`: shape (groups, size). `scales`, `zeros`: what
    to choose from, shape (d_out, groups, choices). `half`: codes are from minus this to one below
    it. `best`: shape (d_out, groups); receives the choices.
    """
    rows, groups, size = weights.shape
    low, high = np.float32(-half), np.float32(half - 1)
    errors = np.empty(scales.shape[2], np.float32)
    for row in range(rows):
        for group in range(groups):
            errors[:] = 0
            for j in range(size):
                value, cost = weights[row, group, j], costs[group, j]
                for place in range(errors.size):
                    scale, zero = scales[row, group, place], zeros[row, group, place]
                    code = min(max(np.rint(value / scale) + zero, low), high)
                    lost = value - (code - zero) * scale
                    errors[place] += cost * lost * lost
            chosen = 0
            for place in range(1, errors.size):
                if errors[place] < errors[chosen]:
                    chosen = place
            best[row, group] = chosen


def quantized(
    codes: Tensor, found: Fit, grid: Grid, dtype: torch.dtype, mask: BitMask | None = None
) -> QuantizedWeight:
    """Return a quantised weight as it travels; ModelError if it has no or too large numbers."""
    if mask is None:
        mask = BitMask.from_bool(np.ones(tuple(codes.shape), dtype=bool))
    scales = found.scales.to(dtype).cpu().contiguous()
    zeros = None if grid.symmetric else found.zeros.to(torch.int8).cpu().contiguous()
    try:
        return QuantizedWeight(mask, grid.bits, codes.cpu().contiguous(), scales, zeros)
    except WireError as error:
        raise ModelError(f"{NOT_FINITE} {error}") from error
