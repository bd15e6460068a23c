"""The Hessian of a linear's reconstruction error, and its inverse in the form that SparseGPT uses.

With second moments ``G = sum_t x_t x_t^T`` of a linear's inputs, replacing its weight W by W'
changes its outputs by ``tr((W - W') G (W - W')^T)``. Every row of W sees the same Hessian G, up to
a factor that no result here depends on.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedprune.errors import ModelError

_COLUMNS = 1024  # of the moments that are float64 at a time
_LEAF = 256  # size of a triangular matrix that is inverted by substitution


@dataclass(frozen=True, eq=False)
class Factor:
    """The inverse of a damped Hessian as a product, ``H^-1 = U^T U``."""

    upper: Tensor  # U, upper triangular with a positive diagonal, float32, shape (d_in, d_in)
    dead: Tensor  # inputs that were zero on every token, bool, shape (d_in,)


def inverse_factor(moments: Tensor, damping: float) -> Factor:
    """Return the factor of the inverse of the damped Hessian.

    SparseGPT (Frantar and Alistarh, arXiv 2301.00774) takes it as the Cholesky factor of the
    inverse. It is found here from one factorisation of H with rows and columns in reverse order:
    ``H = R R^T`` with R upper triangular, hence ``U = R^-1``. The matrix is the same; the inverse
    with its doubled loss of digits is never formed.

    `moments`: sum over tokens of x x^T, shape (d_in, d_in), symmetric; any positive multiple of it
    gives the same pruning. `damping`: share of the mean diagonal that is added to the diagonal (see
    `damped`). Raises ModelError if the moments are not finite, or not positive definite in float32
    nor in float64.
    """
    hessian, dead = damped(moments, damping)
    lower = cholesky(hessian.flip(0, 1), damping)
    del hessian
    inverse = torch.zeros_like(lower)
    _invert(lower, inverse)
    return Factor(inverse.flip(0, 1).to(torch.float32), dead)


def damped(moments: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return (H, dead): moments that can be inverted, and the inputs that were always zero.

    A dead input has a diagonal of zero; it gets the mean diagonal of the living ones, so that
    nothing depends on the scale of the moments. Then ``damping`` times the mean diagonal is added
    to the diagonal.

    `moments`: shape (d_in, d_in), symmetric; not changed. `damping`: at least 0. Returns H,
    float32, shape (d_in, d_in), and ``dead``, bool, shape (d_in,). Raises ModelError if the moments
    are not finite.
    """
    if not bool(torch.isfinite(moments).all()):
        raise ModelError(
            "The second moments of a linear's inputs hold NaN or infinite values. Check the "
            "model's activations: `model.dtype=float32` avoids overflow; raising "
            f"`pruner.damping` (now {damping}) does not help."
        )
    hessian = moments.to(torch.float32, copy=True)
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    mean = diagonal.sum() / (~dead).sum() if not bool(dead.all()) else torch.ones_like(diagonal[0])
    diagonal[dead] = mean
    diagonal += damping * mean
    return hessian, dead


def retargeted(weight: Tensor, moments: Tensor, cross: Tensor, damping: float) -> Tensor:
    """Return the weight whose outputs for the inputs behind pruned blocks are the dense model's.

    With x_t the dense model's input of token t and x~_t the input behind pruned blocks, it is the
    W' that minimises ``sum_t ||W x_t - W' x~_t||^2 + lambda ||W' - W||^2``. Where the gradient is
    zero, ``W' (G + lambda I) = W (sum_t x_t x~_t^T + lambda I)`` with ``G = sum_t x~_t x~_t^T``:

        W' = W + W E (G + lambda I)^-1,   E = sum_t (x_t - x~_t) x~_t^T

    so damping draws towards W, and where nothing deviates W' is W. A solver that minimises
    ``tr((W' - X) G (W' - X)^T)`` over X then minimises ``sum_t ||W x_t - X x~_t||^2`` but for a
    constant: it is the asymmetric calibration of GPTAQ (Li et al., arXiv 2504.02692) for any
    solver.

    `weight`: W, shape (d_out, d_in), any floating dtype. `moments`: G, shape (d_in, d_in),
    symmetric. `cross`: E, shape (d_in, d_in). `damping`: lambda as a share of the mean diagonal
    (see `damped`). An input that was always zero keeps its weights. Returns W', float32, shape
    (d_out, d_in). Raises ModelError as `damped` and `cholesky`.
    """
    hessian, _ = damped(moments, damping)
    lower = cholesky(hessian, damping)
    whole = weight.detach().to(torch.float32)
    shift = (whole @ cross.to(torch.float32)).T.to(lower.dtype)
    return whole + torch.cholesky_solve(shift, lower).T.to(torch.float32)


def cholesky(hessian: Tensor, damping: float) -> Tensor:
    """Return the lower Cholesky factor, float32, or float64 where float32 does not suffice.

    `hessian`: float32, symmetric; one triangle is read. Raises ModelError if it has no factor.
    """
    for dtype in (torch.float32, torch.float64):
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(hessian.to(dtype))
        if not int(failed) and bool(torch.isfinite(lower.diagonal()).all()):
            return lower
    raise ModelError(
        f"The Hessian of a linear with {len(hessian)} inputs cannot be factorised. Raise "
        f"`pruner.damping` (now {damping}, at most 1) or `pruner.num_calibration_samples`."
    )


def reconstruction_error(weight: Tensor, new: Tensor, moments: Tensor) -> float:
    """Return the squared change of a linear's outputs as a share of their squared size.

    ``tr((W - W') G (W - W')^T) / tr(W G W^T)`` in float64; 0 where the outputs are zero.

    `weight`, `new`: W and W', shape (d_out, d_in), any floating dtype. `moments`: G, the sum over
    tokens of x x^T, shape (d_in, d_in).
    """
    before = weight.detach().to(torch.float64)
    size = _energy(before, moments)
    return _energy(before - new.detach().to(torch.float64), moments) / size if size > 0 else 0.0


def _invert(lower: Tensor, out: Tensor) -> None:
    """Write the inverse of a lower triangular matrix into zeros, by halves: mostly products."""
    size = len(lower)
    if size <= _LEAF:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        out.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    _invert(lower[:half, :half], out[:half, :half])
    _invert(lower[half:, half:], out[half:, half:])
    out[half:, :half] = out[half:, half:] @ (lower[half:, :half] @ out[:half, :half]).neg_()


def _energy(weight: Tensor, moments: Tensor) -> float:
    """Return tr(W G W^T) of a float64 weight."""
    total = 0.0
    for start in range(0, len(moments), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        image = weight @ moments[:, columns].to(torch.float64)
        total += float((image * weight[:, columns]).sum())
    return total
