"""Spread the sparsity over blocks: those with more outliers keep more of their weights.

OWL (Yin et al., ICML 2024) counts a block's outliers among its Wanda scores, on the dense model.
The scores need only the sums of squared inputs, so federated sums give the centralised shares.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning.groups import NOT_FINITE
from fedprune.pruning.statistics import ColumnStatistics

_BLOCK = 1 << 20  # weights of a step: their scores are never held all at once
_MOST = 0.99  # no block loses more than this, but to reach a higher mean
_DIGITS = 6  # of a sparsity: what differs by less is the same on every machine


def outlier_share(
    weights: Mapping[str, Tensor], stats: Mapping[str, ColumnStatistics], threshold: float
) -> float | None:
    """Return the share of a block's weights whose score is above ``threshold`` times the mean.

    A score is ``|W_ij| * sqrt(mean over tokens of x_j**2)``; the mean is over all linears of the
    block together.

    `weights`: name of each linear of one block -> its dense weight, shape (d_out, d_in). `stats`:
    name of each of these linears -> what is known of its inputs. `threshold`: OWL's M,
    `allocation.threshold`. Returns shares from 0 to 1; None of a block of which nothing is pruned.
    Raises ModelError if a score is NaN or infinite, or statistics are missing or of other sizes.
    """
    roots = {name: _roots(name, weight, stats) for name, weight in weights.items()}
    if not weights:
        return None
    # Rows are added up exactly, so that the mean does not depend on how they are grouped.
    sums = [
        math.fsum(
            total
            for rows in _rows(weight)
            for total in _scores(rows, roots[name]).sum(1, dtype=torch.float64).tolist()
        )
        for name, weight in weights.items()
    ]
    count = sum(weight.numel() for weight in weights.values())
    limit = threshold * (math.fsum(sums) / count)
    if not math.isfinite(limit):
        raise ModelError(NOT_FINITE)
    above = sum(
        int((_scores(rows, roots[name]).double() > limit).sum())
        for name, weight in weights.items()
        for rows in _rows(weight)
    )
    return above / count


def owl_sparsities(shares: Sequence[float | None], sparsity: float, spread: float) -> list[float]:
    """Return a sparsity for each block, lower where the share of outliers is higher.

    ``s_l = s + mean(r) - r_l`` with ``r_l = 2 * spread * (D_l - min D) / (max D - min D)``. What
    leaves the range from 0 to 0.99 is cut to it, and all others shift by the same amount so that
    the mean holds.

    `shares`: `outlier_share` of each block; only their proportions matter. All equal: all blocks
    get the mean. What is None has no part in it and gets the mean too. `sparsity`: mean over
    blocks, 0 <= sparsity < 1. `spread`: OWL's lambda, `allocation.spread`: half of the largest
    difference between two blocks. Returns rounded to six decimals; their mean is `sparsity` to
    within 1e-6.
    """
    known = [share for share in shares if share is not None]
    low, high = min(known), max(known)
    if low == high:
        return [sparsity] * len(shares)
    lift = [2 * spread * (share - low) / (high - low) for share in known]
    mean = math.fsum(lift) / len(lift)
    wanted = [sparsity + mean - extra for extra in lift]
    most = max(_MOST, sparsity)
    shift = _shift(wanted, sparsity, most)
    found = iter(round(min(max(value + shift, 0.0), most), _DIGITS) for value in wanted)
    return [sparsity if share is None else next(found) for share in shares]


def _shift(wanted: Sequence[float], mean: float, most: float) -> float:
    """Return what to add to all values so that, cut to [0, most], they have this mean."""
    # The mean of the cut values grows with the shift: halve the interval until it is found.
    low, high = -max(wanted), most - min(wanted)
    if 0 <= min(wanted) and max(wanted) <= most:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        total = math.fsum(min(max(value + middle, 0.0), most) for value in wanted)
        low, high = (middle, high) if total < mean * len(wanted) else (low, middle)
    return high


def _roots(name: str, weight: Tensor, stats: Mapping[str, ColumnStatistics]) -> Tensor:
    """Return the root mean square of each input, float32, on the weight's device."""
    if name not in stats or stats[name].sum_squares.shape != weight.shape[1:]:
        found = f"{tuple(stats[name].sum_squares.shape)} of them" if name in stats else "none"
        raise ModelError(
            f"Linear '{name}' needs statistics of its {weight.shape[1]} inputs, got {found}."
        )
    # An expert that no token was routed to scores zero.
    squares = stats[name].sum_squares.to(torch.float64) / max(stats[name].tokens, 1)
    return squares.sqrt_().to(torch.float32).to(weight.device)


def _rows(weight: Tensor) -> tuple[Tensor, ...]:
    return torch.split(weight.detach(), max(_BLOCK // weight.shape[1], 1))


def _scores(rows: Tensor, roots: Tensor) -> Tensor:
    return rows.to(torch.float32).abs() * roots
