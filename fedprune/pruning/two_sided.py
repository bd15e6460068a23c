"""ALPS with what the loss says of the outputs: rows of an error that the loss minds weigh more.

An error D of a weight changes the outputs by D x, and the loss, to second order, by half the mean
of (g . D x)**2 with g its gradient at the outputs. If g and x have nothing to do with each other
that is ``tr(M D G D^T)`` with M the second moments of g and G those of x: the factored Fisher
information of K-FAC (Martens and Grosse, arXiv 1503.05671). ALPS (arXiv 2406.07831, see
`fedprune.pruning.alps`) minimises it with M the identity; here M is what was measured.

Rows are coupled by M, so the penalised step needs both eigendecompositions: with
``A = U a U^T`` and ``B = V b V^T`` for the normalised G and M it divides by ``b_i a_j + rho`` in
their coordinates; and conjugate gradients run on all rows together.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.pruning.alps import AlpsPruner, Penalised, find_support
from fedprune.pruning.groups import NOT_FINITE, MaskSpec
from fedprune.pruning.hessian import damped
from fedprune.pruning.least_squares import normalised
from fedprune.pruning.pruner import second_moments, sparse_change
from fedprune.pruning.statistics import Statistic
from fedprune.wire.changes import SparseWeight

_OUTPUT_DAMPING = 0.1  # of M: fewer texts tell of it than of G; a hundredth is worse, see docs
_STEPS = 20  # of conjugate gradients
_TOLERANCE = 1e-4  # share of the error that a step must still take off
_ROUNDING = 1e-10  # of the first residual's square: below it is noise that would be amplified


def two_sided_alps(
    weight: Tensor, moments: Tensor, outputs: Tensor, spec: MaskSpec, damping: float
) -> tuple[Tensor, Tensor]:
    """Return the pruned weight and its mask.

    `weight`: shape (d_out, d_in), any floating dtype; not changed. `moments`: G, the sum over
    tokens of x x^T, shape (d_in, d_in), on the weight's device; any positive multiple of it gives
    the same result. `outputs`: M, the sum over tokens of g g^T, shape (d_out, d_out); any positive
    multiple as well. `damping`: share of the mean diagonal that is added to the diagonal of G; of M
    it is a tenth. Returns as `fedprune.pruning.alps.alps`. Raises ModelError if weights or moments
    are not finite, or an N:M pattern does not divide d_in.
    """
    problem = normalised(weight, moments, damping)
    importance, _ = damped(outputs.to(weight.device), _OUTPUT_DAMPING)
    rows = importance.diagonal().sqrt()[:, None]
    left, right = importance / rows / rows.T, problem.matrix
    target = problem.target * rows
    state, mask = find_support(target, _penalised(left, right), spec)
    found = _refitted(target, left, right, mask, state)
    if not bool(torch.isfinite(found).all()):
        raise ModelError(NOT_FINITE)
    return found.div_(problem.scale).div_(rows), mask


def _penalised(left: Tensor, right: Tensor) -> Penalised:
    (b, rows), (a, columns) = _eigen(left), _eigen(right)
    values = b[:, None] * a

    def prepared(rho: float) -> Callable[[Tensor, Tensor], Tensor]:
        shrink = rho / (values + rho)
        return lambda target, step: target + rows @ ((rows.T @ step @ columns) * shrink) @ columns.T

    return prepared


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix.to(torch.float64))
    return values.clamp_min_(0).to(torch.float32), vectors.to(torch.float32)


def _refitted(target: Tensor, left: Tensor, right: Tensor, mask: Tensor, start: Tensor) -> Tensor:
    """Return the best values on a support, by conjugate gradients on all rows together."""
    found, change = start.clone(), target - start
    gradient = left @ change @ right
    error = float((gradient * change).sum(dtype=torch.float64))
    residual = gradient.mul_(mask)
    direction, square = residual.clone(), residual.square().sum(dtype=torch.float64)
    least = float(square) * _ROUNDING
    for _ in range(_STEPS):
        image = (left @ direction @ right).mul_(mask)
        curvature = (direction * image).sum(dtype=torch.float64)
        if not (curvature > 0 and square > least):
            break
        length = float(square / curvature)
        found.add_(direction, alpha=length)
        residual.sub_(image, alpha=length)
        gain = length * float(square)
        error -= gain
        if gain <= _TOLERANCE * max(error, 0.0):
            break
        before, square = square, residual.square().sum(dtype=torch.float64)
        direction = direction.mul_(float(square / before)).add_(residual)
    return found


class TwoSidedAlpsPruner(AlpsPruner):
    """ALPS with what the loss says of a linear's outputs, where that is known; else plain ALPS."""

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> SparseWeight:
        """Return survivors with new values (see `Pruner.prune`)."""
        found = second_moments(self.name, weight, stats)
        if found.outputs is None:
            return super().prune(weight, stats, spec)
        new, mask = two_sided_alps(weight, found.moments, found.outputs, spec, self.damping)
        return sparse_change(weight, new, mask)
