"""Weights that reconstruct a linear's outputs best, on a given support, for all rows at once.

Every input is divided by its root mean square and every weight multiplied by it, so that the
damped Hessian has ones on its diagonal: this is the diagonal (Jacobi) preconditioner, and the
coordinates in which ALPS compares weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.pruning.hessian import damped


@dataclass(frozen=True, eq=False)
class Problem:
    """Find X close to `target` in the norm ``tr((X - target) matrix (X - target)^T)``.

    Parameters
    ----------
    target : Tensor
        The dense weight times `scale`, float32, shape (d_out, d_in); zero where an input is dead.
    matrix : Tensor
        The damped Hessian with a diagonal of ones, float32, shape (d_in, d_in).
    scale : Tensor
        What a column of weights was multiplied by, float32, shape (d_in,).
    """

    target: Tensor
    matrix: Tensor
    scale: Tensor


def normalised(weight: Tensor, moments: Tensor, damping: float) -> Problem:
    """Return the problem of one linear.

    Parameters
    ----------
    weight : Tensor
        Shape (d_out, d_in), any floating dtype; not changed.
    moments : Tensor
        Sum over tokens of x x^T, shape (d_in, d_in), on the weight's device.
    damping : float
        See `fedprune.pruning.hessian.damped`.

    Raises
    ------
    ModelError
        If the moments are not finite.
    """
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

    Parameters
    ----------
    problem : Problem
        Target and matrix.
    mask : Tensor
        bool, shape (d_out, d_in), True = may be non-zero.
    start : Tensor
        Where to start, float32, zero off the support.
    steps : int
        At most so many.
    tolerance : float
        Stop after a step that takes less than this share off the error.

    Returns
    -------
    Tensor
        float32, shape (d_out, d_in), exactly zero off the support.
    """
    change = problem.target - start
    gradient = change @ problem.matrix
    error = float((gradient * change).sum(dtype=torch.float64))
    residual = gradient.mul_(mask)
    found, direction = start.clone(), residual.clone()
    square = residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        image = (direction @ problem.matrix).mul_(mask)
        length = _ratio(square, (direction * image).sum(1, keepdim=True))
        found += length * direction
        residual -= length * image
        gain = float((length * square).sum(dtype=torch.float64))
        error -= gain
        if gain <= tolerance * error:
            break
        before, square = square, residual.square().sum(1, keepdim=True)
        direction = direction.mul_(_ratio(square, before)).add_(residual)
    return found


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; zero where the denominator is not positive, in rows that are done."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)
