"""ALPS: find the support by ADMM, then the best values on it by conjugate gradients.

Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language
Models", NeurIPS 2024 (arXiv 2406.07831). The reconstruction error is minimised over a dense weight
B and a sparse weight D that are drawn together by a growing penalty rho, in the coordinates of
`fedprune.pruning.least_squares`:

    B = (A + rho I)^-1 (A W - V + rho D),   D = largest entries of B + V / rho,   V += rho (B - D)

Here V / rho is what B + V / rho has off the support, so that B + V / rho and the mask are the whole
state; and ``B = W + rho (D - V / rho - W) (A + rho I)^-1`` takes one product instead of two. An
inverse whenever rho changes is cheaper than one eigendecomposition and a second product each time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning.groups import NOT_FINITE, MaskSpec
from fedprune.pruning.hessian import cholesky
from fedprune.pruning.least_squares import Problem, conjugate_gradients, normalised
from fedprune.pruning.pruner import second_moments, sparse_change
from fedprune.pruning.selection import prune_lowest, runs_compiled
from fedprune.pruning.selection_kernels import prune_products
from fedprune.pruning.statistics import Statistic
from fedprune.wire.changes import SparseWeight

_PENALTY = 0.03  # first rho; smaller is slower and a little better, the published 0.1 the reverse
_PERIOD = 3  # iterations with the same rho
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # (if more of the support changed, factor of rho)
_STABLE = 1e-3  # share of the support that may still change at the end
_ITERATIONS = 300
_STEPS = 10  # of conjugate gradients: ADMM's values are nearly the best ones already
_TOLERANCE = 1e-4


def alps(weight: Tensor, moments: Tensor, spec: MaskSpec, damping: float) -> tuple[Tensor, Tensor]:
    """Return the pruned weight and its mask.

    `weight`: shape (d_out, d_in), any floating dtype; not changed. `moments`: sum over tokens of x
    x^T, shape (d_in, d_in), on the weight's device; any positive multiple of it gives the same
    result. The weights of dead inputs become zero. `spec`: sparsity, pattern and comparison group.
    Of equal entries the lower index is pruned first. `damping`: share of the mean diagonal that is
    added to the diagonal. Returns the new weight, float32, exactly zero where pruned, and the mask,
    True = survives, with exactly the survivors that `spec` says. Raises ModelError if weights or
    moments are not finite, the moments are not positive definite, or an N:M pattern does not divide
    d_in.
    """
    problem = normalised(weight, moments, damping)
    sparse, mask = find_support(problem.target, _penalised(problem, damping), spec)
    found = conjugate_gradients(problem, mask, sparse, _STEPS, _TOLERANCE)
    if not bool(torch.isfinite(found).all()):
        raise ModelError(NOT_FINITE)
    return found.div_(problem.scale), mask


Penalised = Callable[[float], Callable[[Tensor, Tensor], Tensor]]
"""rho -> ((T, X) -> T + rho Y), where Y is what objective's Hessian plus rho turns into X."""


def find_support(target: Tensor, penalised: Penalised, spec: MaskSpec) -> tuple[Tensor, Tensor]:
    """Return ADMM's sparse weight, in normalised coordinates, and its mask.

    `target`: the dense weight in these. `penalised`: the system of each step, anew when rho
    changes.
    """
    rho = _PENALTY
    before = mask = _largest(target, spec)
    kept = max(int(mask.sum()), 1)
    solved = penalised(rho)
    state, dual = target, torch.zeros_like(target)  # B + V / rho, and V / rho
    for iteration in range(1, _ITERATIONS + 1):
        step = state.masked_fill(~mask, 0.0).sub_(dual).sub_(target)
        state = solved(target, step).add_(dual)
        mask = _largest(state, spec)
        dual = state.masked_fill(mask, 0.0)
        if iteration % _PERIOD:
            continue
        changed = int((mask != before).sum()) / kept
        if changed <= _STABLE:
            break
        before = mask
        growth = next(factor for bound, factor in _GROWTH if changed > bound)
        rho *= growth
        dual /= growth
        solved = penalised(rho)
    return state.masked_fill(~mask, 0.0), mask


def _largest(values: Tensor, spec: MaskSpec) -> Tensor:
    """Return the mask that keeps the entries of the largest magnitude."""
    if not runs_compiled(values):
        return prune_lowest(values.abs(), spec)
    return torch.from_numpy(prune_products(values, torch.ones(values.shape[1]), spec).to_bool())


def _penalised(problem: Problem, damping: float) -> Penalised:
    def prepared(rho: float) -> Callable[[Tensor, Tensor], Tensor]:
        inverse = _inverse(problem.matrix, rho, damping)
        return lambda target, step: torch.addmm(target, step, inverse, alpha=rho)

    return prepared


def _inverse(matrix: Tensor, rho: float, damping: float) -> Tensor:
    """Return (matrix + rho I)^-1, float32."""
    shifted = matrix.clone()
    shifted.diagonal().add_(rho)
    return torch.cholesky_inverse(cholesky(shifted, damping)).to(torch.float32)


@dataclass(frozen=True)
class AlpsPruner:
    """ALPS (Meng et al., NeurIPS 2024): see the module."""

    damping: float
    name: str = "alps"
    needs: str = "moments"
    updates: bool = True

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> SparseWeight:
        """Return survivors with new values (see `Pruner.prune`)."""
        found = second_moments(self.name, weight, stats)
        new, mask = alps(weight, found.moments, spec, self.damping)
        return sparse_change(weight, new, mask)
