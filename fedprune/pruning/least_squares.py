"""Weights that reconstruct a linear's outputs best, on a given support, for all rows at once.

Every input is divided by its root mean square and every weight multiplied by it, so that the
damped Hessian has ones on its diagonal: this is the diagonal (Jacobi) preconditioner, and the
coordinates in which ALPS compares weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.pruning.hessian import damped

_ROUNDING = 1e-12  # square of the smallest relative residual that float32 can tell from zero


@dataclass(frozen=True, eq=False)
class Problem:
    """Find X close to `target` in the norm ``tr((X - target) matrix (X - target)^T)``."""

    # the dense weight times `scale`, float32, shape (d_out, d_in); zero where an input is dead
    target: Tensor
    matrix: Tensor  # the damped Hessian with a diagonal of ones, float32, shape (d_in, d_in)
    scale: Tensor  # what a column of weights was multiplied by, float32, shape (d_in,)


def normalised(weight: Tensor, moments: Tensor, damping: float) -> Problem:
    """Return the problem of one linear; ModelError if the moments are not finite."""
    hessian, dead = damped(moments, damping)
    scale = hessian.diagonal().sqrt()
    target = weight.detach().to(torch.float32) * scale
    target[:, dead] = 0.0
    return Problem(target, hessian.div_(scale).div_(scale[:, None]), scale)


def conjugate_gradients(
    problem: Problem, mask: Tensor, start: Tensor, steps: int, tolerance: float
) -> Tensor:
    """Return the minimiser on the support `mask`: every row's own conjugate gradients, in step.

    One product of a (d_out, d_in) with a (d_in, d_in) matrix a step, whatever the supports.

    `mask`: bool, shape (d_out, d_in), True = may be non-zero. `start`: where to start, float32,
    zero off the support. `steps`: at most so many. `tolerance`: stop after a step that takes less
    than this share off the error. Returns float32, shape (d_out, d_in), exactly zero off the
    support.
    """
    change = problem.target - start
    gradient = change @ problem.matrix
    error = float((gradient * change).sum(dtype=torch.float64))
    residual = gradient.mul_(mask)
    found, direction = start.clone(), residual.clone()
    square = residual.square().sum(1, keepdim=True)
    least = square * _ROUNDING  # below it, a row's residual is noise that would be amplified
    for _ in range(steps):
        image = (direction @ problem.matrix).mul_(mask)
        curvature = (direction * image).sum(1, keepdim=True)
        length = torch.where((square > least) & (curvature > 0), square / curvature, 0.0)
        found += length * direction
        residual -= length * image
        gain = float((length * square).sum(dtype=torch.float64))
        error -= gain
        if gain <= tolerance * max(error, 0.0):
            break
        before, square = square, residual.square().sum(1, keepdim=True)
        turn = torch.where(before > least, square / before, 0.0)
        direction = direction.mul_(turn).add_(residual)
    return found
