"""Spread the sparsity over linears by what their errors cost: those that the loss minds keep more.

With f_l the mean squared gradient of the loss at a linear's outputs
(`fedprune.pruning.output_gradients.mean_squares`) and E_l(s) what pruning it to sparsity s changes
its outputs by, the loss grows by about ``sum_l f_l E_l(s_l)``, to second order and as if errors of
different linears had nothing to do with each other: the reasoning of Optimal Brain Damage (LeCun
et al., 1990) for whole matrices. Of all sparsities with the mean asked for, those are taken for
which it grows least. ``E_l(s)`` is the sum over pruned weights of ``W_ij**2`` times the mean square
of input j, as in Wanda; every E_l is convex, so the least is where all margins cost the same.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning.groups import NOT_FINITE, any_expert
from fedprune.pruning.statistics import ColumnStatistics

_STEPS = 1024  # of a curve at most; a matrix of fewer weights a group has one step for each
_MOST = 0.99  # no linear loses more than this, but to reach a higher mean
_DIGITS = 6  # of a sparsity, as the configuration lists it
_ROUNDING = 1e-9  # share of all weights


@dataclass(frozen=True, eq=False)
class Curve:
    """What it costs to prune a matrix, or several alike that share a sparsity, step by step."""

    # of each step, in the order in which they are taken; they do not fall
    costs: NDArray[np.float64]
    # weights of a comparison group. After step k of K ``size * k // K`` of them are pruned.
    size: int
    weights: int

    def sparsity(self, steps: int) -> float:
        """Return the least sparsity of six digits with which so many steps are pruned."""
        count = self.size * steps // len(self.costs)
        return float(math.ceil(round(count * 10**_DIGITS / self.size, 3)) / 10**_DIGITS)

    def zeros(self, steps: int) -> int:
        """Return how many weights so many steps prune."""
        return self.size * steps // len(self.costs) * (self.weights // self.size)

    def steps(self, sparsity: float) -> int:
        """Return how many whole steps there are to a sparsity."""
        return math.floor(round(sparsity * len(self.costs), _DIGITS))

    def plus(self, other: "Curve") -> "Curve":
        """Return the curve of both at the same sparsity; they are of one shape."""
        return Curve(self.costs + other.costs, self.size, self.weights + other.weights)


def cost_curve(
    weight: Tensor, statistics: ColumnStatistics, sensitivity: float, group: str
) -> Curve:
    """Return what it costs to prune a linear.

    `weight`: dense, shape (d_out, d_in), any floating dtype. `sensitivity`: f_l, what a change of
    its outputs costs; with the share of tokens that reach it, if not all. `group`: the comparison
    group, 'layer', 'row' or 'column': within it the cheapest weights go first. Raises ModelError if
    a cost is NaN or infinite.
    """
    squares = statistics.sum_squares.to(torch.float64) / max(statistics.tokens, 1)
    costs = weight.detach().to(torch.float32, copy=True).square_()
    costs *= squares.to(torch.float32).to(weight.device)
    if not bool(torch.isfinite(costs).all()) or not math.isfinite(sensitivity):
        raise ModelError(NOT_FINITE)
    if group == "layer":
        ordered = costs.reshape(-1).sort().values.to(torch.float64)
    else:
        across = 1 if group == "row" else 0
        ordered = costs.sort(dim=across).values.sum(1 - across, dtype=torch.float64)
    size = len(ordered)
    steps = min(size, _STEPS)
    total = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)]).cpu().numpy()
    ends = size * np.arange(steps + 1, dtype=np.int64) // steps
    return Curve(sensitivity * np.diff(total[ends]), size, weight.numel())


def block_curves(
    weight: Callable[[str], Tensor],
    statistics: Mapping[str, ColumnStatistics],
    sensitivities: Mapping[str, float],
    group: str,
    experts: Collection[str],
) -> dict[str, Curve]:
    """Return what it costs to prune each linear of a block.

    `weight`: name of the linear -> dense weight, shape (d_out, d_in). `statistics`: name of each
    linear -> what is known of its inputs. `sensitivities`: name of each linear -> f_l. `experts`:
    those of routed experts. Of each of their matrices one curve is made for all together, by the
    name with ``*`` for the expert's number: what a single one costs, few tokens tell. Raises
    ModelError naming the linear, as :func:`cost_curve`.
    """
    found: dict[str, Curve] = {}
    tokens = max((one.tokens for one in statistics.values()), default=0)
    for name, known in statistics.items():
        reached = known.tokens / max(tokens, 1)
        try:
            curve = cost_curve(weight(name), known, reached * sensitivities[name], group)
        except ModelError as error:
            raise ModelError(f"linear '{name}': {error}") from error
        shared = any_expert(name) if name in experts else name
        found[shared] = found[shared].plus(curve) if shared in found else curve
    return found


def sensitivity_sparsities(
    curves: Sequence[Mapping[str, Curve]], sparsity: float, spread: float
) -> list[dict[str, float]]:
    """Return the sparsities that cost least, with the mean asked for.

    `curves`: block -> name of the linear -> what it costs. `sparsity`: mean over all weights, 0 <=
    sparsity < 1. `spread`: the most that a linear may be above or below the mean: the costs are
    those of small errors. Returns block -> name of the linear -> sparsity. Every one but one prunes
    a whole number of its curve's steps; their mean over all weights is `sparsity` to within 2e-6.
    """
    known = [(block, name) for block, found in enumerate(curves) for name in found]
    if not known:
        return [{} for _ in curves]
    parts = [curves[block][name] for block, name in known]
    total = sum(part.weights for part in parts)
    least, most = max(0.0, sparsity - spread), min(sparsity + spread, max(_MOST, sparsity))
    # Where steps are wide there may be none between the bounds; the mean can be kept all the same.
    first = [min(-part.steps(-least), part.steps(sparsity)) for part in parts]
    last = [max(part.steps(most), low) for part, low in zip(parts, first, strict=True)]
    taken, left = list(first), sparsity * total
    left -= sum(part.zeros(steps) for part, steps in zip(parts, first, strict=True))
    full: dict[int, None] = {}  # whose next step is too wide for what is left; a narrower may do
    for number in _cheapest_first(parts, first, last):
        step = parts[number].zeros(taken[number] + 1) - parts[number].zeros(taken[number])
        if number in full or step > left + _ROUNDING * total:
            full[number] = None
        else:
            taken[number], left = taken[number] + 1, left - step
    partly = {number: max(left, 0.0) / parts[number].weights for number in list(full)[:1]}
    found: list[dict[str, float]] = [{} for _ in curves]
    for number, (block, name) in enumerate(known):
        share = parts[number].sparsity(taken[number]) + partly.get(number, 0.0)
        found[block][name] = round(share, _DIGITS)
    return found


def _cheapest_first(parts: Sequence[Curve], first: Sequence[int], last: Sequence[int]) -> list[int]:
    """Return for each step that may be taken whose it is, by cost a weight, then by place."""
    owners, costs = [], []
    for number, part in enumerate(parts):
        steps = np.maximum.accumulate(part.costs)[first[number] : last[number]]
        ends = part.size * np.arange(len(part.costs) + 1, dtype=np.int64) // len(part.costs)
        sizes = np.diff(ends)[first[number] : last[number]] * (part.weights / part.size)
        costs.append(steps / sizes)
        owners.append(np.full(len(steps), number))
    order = np.argsort(np.concatenate(costs), kind="stable")
    owner: list[int] = np.concatenate(owners)[order].tolist()
    return owner
