"""Which units of a block go, and the values of the matrix after them that make up for it.

With second moments G of that matrix's inputs, a change of its weight W costs
``tr((W - W') G (W - W')^T)``. Units go one after another, always the one whose going costs least
once all remaining weights have been set to what is best then: the optimal brain surgeon (Hassibi
and Stork, NeurIPS 1992) for groups of columns, as in ZipLM (Kurtic et al., arXiv 2302.04089,
equation 2) and SlimGPT (Ling et al., arXiv 2412.18110). At the end the weights of the inputs that
remain are the least-squares solution,

    W'_S = W G_{:,S} (G_SS)^-1.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config.pattern import pruned_count
from fedprune.errors import ModelError, WireError
from fedprune.pruning.groups import NOT_FINITE, MaskSpec
from fedprune.pruning.hessian import cholesky, damped
from fedprune.pruning.pruner import Pruner, second_moments, sparse_change
from fedprune.pruning.statistics import Statistic
from fedprune.pruning.units import Structure, Units
from fedprune.wire.changes import Change, SparseWeight, mask_of
from fedprune.wire.masks import BitMask

_STEPS = 256  # times that costs are computed anew, where there are so many units to remove


def units_kept(units: Units, sparsity: float, multiple: int) -> int:
    """Return how many units remain: at least so many that `sparsity` of them go, or fewer.

    The inputs that remain of the matrix after them are a `multiple`. Raises ModelError if none
    would go, or there is no such multiple.
    """
    total, step = units.count, math.lcm(units.size, multiple) // units.size
    kept = -(-(total - pruned_count(total, sparsity)) // step) * step
    if kept < total:
        return kept
    least = total - (total - 1) // step * step
    way_out = (
        f"Set sparsity={math.ceil(least / total * 1000) / 1000:g}, or lower `pruner.multiple`."
        if least < total
        else "Lower `pruner.multiple`."
    )
    raise ModelError(
        f"`sparsity` {sparsity:g} removes none of the {total} units in front of `{units.linear}`: "
        f"what remains must be a multiple of {multiple} inputs (`pruner.multiple`), of which a "
        f"unit has {units.size}. {way_out}"
    )


def cheapest_units(
    weight: Tensor, moments: Tensor, columns: NDArray[np.int64], kept: int, damping: float
) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the repaired weight and the units that remain.

    `weight`: W of the matrix after the units, shape (d_out, d_in), any floating dtype; not changed.
    `moments`: G, the sum over tokens of x x^T, shape (d_in, d_in), on the weight's device.
    `columns`: the inputs of each unit, shape (units, size). `kept`: how many units remain.
    `damping`: see `fedprune.pruning.hessian.damped`. Returns W', float32, shape (d_out, d_in), zero
    in the columns of the units that went; and the numbers of those that remain, ascending. Raises
    ModelError if the moments are not finite or cannot be factorised.
    """
    hessian, dead = damped(moments, damping)
    dense = weight.detach().to(torch.float64)
    dense = dense.masked_fill(dead, 0.0)  # whatever it was, nobody saw it
    inverse = torch.cholesky_inverse(cholesky(hessian, damping).to(torch.float64))
    places = torch.from_numpy(columns).to(weight.device)
    current, alive = dense.clone(), torch.ones(len(columns), dtype=torch.bool)
    step = max(1, -(-(len(columns) - kept) // _STEPS))
    while (left := int(alive.sum()) - kept) > 0:
        costs = _costs(current, inverse, places).cpu()
        costs[~alive] = torch.inf
        gone = torch.argsort(costs, stable=True)[: min(step, left)]
        alive[gone] = False
        inputs = places[gone.to(places.device)].reshape(-1)
        across = inverse[inputs]
        solved = torch.linalg.solve(across[:, inputs], across)
        current -= current[:, inputs] @ solved
        inverse -= across.T @ solved
        current[:, inputs] = 0.0
        inverse[inputs], inverse[:, inputs] = 0.0, 0.0
    numbers = torch.nonzero(alive)[:, 0].numpy()
    remaining = torch.from_numpy(np.sort(columns[numbers].reshape(-1))).to(weight.device)
    return _repaired(dense, hessian, remaining, damping), numbers


def smallest_units(
    weight: Tensor, moments: Tensor, columns: NDArray[np.int64], kept: int
) -> tuple[Tensor, NDArray[np.int64]]:
    """Return what :func:`cheapest_units` does without any repair: the others stay as they are.

    Those go whose own contribution to the outputs, ``tr(W_U G_UU W_U^T)``, is smallest.
    """
    dense = weight.detach().to(torch.float64)
    places = torch.from_numpy(columns).to(weight.device)
    costs = torch.stack(
        [
            ((dense[:, unit] @ moments[unit][:, unit].to(torch.float64)) * dense[:, unit]).sum()
            for unit in places
        ]
    )
    order = torch.argsort(costs.cpu(), stable=True)
    numbers = np.sort(order[len(order) - kept :].numpy())
    new = torch.zeros_like(dense, dtype=torch.float32)
    remaining = torch.from_numpy(columns[numbers].reshape(-1)).to(weight.device)
    new[:, remaining] = dense[:, remaining].to(torch.float32)
    return new, numbers


def _costs(weight: Tensor, inverse: Tensor, places: Tensor) -> Tensor:
    """Return what each unit's going costs, ``tr(W_U ((H^-1)_UU)^-1 W_U^T)``; NaN if it is gone."""
    if places.shape[1] == 1:
        flat = places[:, 0]
        return weight[:, flat].square().sum(0) / inverse.diagonal()[flat]
    costs = weight.new_full((len(places),), torch.inf)
    for number, unit in enumerate(places):
        block = inverse[unit][:, unit]
        if bool(block.any()):
            own = weight[:, unit]
            costs[number] = (own * torch.linalg.solve(block, own.T).T).sum()
    return costs


def _repaired(dense: Tensor, hessian: Tensor, remaining: Tensor, damping: float) -> Tensor:
    """Return the least-squares weight on the inputs that remain, zero elsewhere; float32."""
    lower = cholesky(hessian[remaining][:, remaining], damping).to(torch.float64)
    right = hessian[remaining].to(torch.float64) @ dense.T
    new = torch.zeros_like(dense, dtype=torch.float32)
    new[:, remaining] = torch.cholesky_solve(right, lower).T.to(torch.float32)
    return new


def unit_pruner(pruner: Pruner) -> "StructuredPruner | None":
    """Return a pruner that removes units as what it is, None for another."""
    return pruner if isinstance(pruner, StructuredPruner) else None


class StructuredPruner:
    """Removes whole units of every block and repairs the matrix after them.

    `structure`: which units. `multiple`: the width that remains is a multiple of it. `repair`:
    whether the weights that remain make up for those that go. `damping`: `pruner.damping`.
    """

    name = "structured"
    needs = "moments"
    updates = True

    def __init__(self, structure: Structure, multiple: int, repair: bool, damping: float) -> None:
        self.structure = structure
        self.multiple = multiple
        self.repair = repair
        self.damping = damping

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> Change:
        """Refuse a matrix by itself (see `Pruner.prune`): units are made of several.

        Raises ModelError always.
        """
        raise ModelError(
            f"The pruner '{self.name}' removes units of whole blocks, not weights of one linear."
        )

    def prune_units(
        self, weights: Mapping[str, Tensor], stats: Statistic | None, units: Units, sparsity: float
    ) -> dict[str, Change]:
        """Return what becomes of the matrices that a block's units are made of.

        `weights`: name of the linear -> weight, shape (d_out, d_in). `stats`: second moments of
        what enters the matrix after the units. `units`: where they are. `sparsity`: the share of
        them that goes (see :func:`units_kept`). Returns every given weight: the matrix after the
        units with columns of zeros, those before it with rows of zeros, all others whole. Raises
        ModelError if the moments are missing, of another size or not finite, or none would go.
        """
        weight = weights[units.linear]
        moments = second_moments(self.name, weight, stats).moments.to(weight.device)
        kept = units_kept(units, sparsity, self.multiple)
        if self.repair:
            new, numbers = cheapest_units(weight, moments, units.columns, kept, self.damping)
        else:
            new, numbers = smallest_units(weight, moments, units.columns, kept)
        if not bool(torch.isfinite(new).all()):
            raise ModelError(NOT_FINITE)
        gone, changes = np.setdiff1d(np.arange(units.count), numbers), dict[str, Change]()
        for name, other in weights.items():
            mask = np.ones(tuple(other.shape), dtype=bool)
            if name in units.producers:
                mask[units.producers[name][gone].reshape(-1)] = False
            if name == units.linear:
                mask[:, units.columns[gone].reshape(-1)] = False
                changes[name] = sparse_change(weight, new, torch.from_numpy(mask))
            else:
                changes[name] = BitMask.from_bool(mask)
        return changes


def check_units(changes: Mapping[str, Change]) -> None:
    """Raise ``WireError`` unless a block's changes leave whole rows and columns.

    `changes`: what :meth:`StructuredPruner.prune_units` makes; may come from anyone.
    """
    masks = {name: mask_of(change).to_bool() for name, change in changes.items()}
    after = [name for name, change in changes.items() if isinstance(change, SparseWeight)]
    if len(after) != 1:
        raise WireError(f"one linear must have new values, got {', '.join(after) or 'none'}.")
    for name, mask in masks.items():
        lines = mask if name == after[0] else mask.T
        if not np.array_equal(lines, np.broadcast_to(lines.any(axis=0), lines.shape)):
            what = "inputs" if name == after[0] else "outputs"
            raise WireError(f"linear '{name}': whole {what} must go, got parts of them.")
