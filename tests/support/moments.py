"""Weights, and second moments of inputs that move together, as those of a language model do."""

import torch


def correlated(d_out, d_in, seed=0, dead=()):
    """Return (weight, moments): a few common directions and a few loud inputs; float32."""
    rng = torch.Generator().manual_seed(seed)
    common = torch.randn(max(d_in // 8, 1), d_in, generator=rng)
    inputs = torch.randn(4 * d_in, len(common), generator=rng) @ common
    inputs = inputs + 0.7 * torch.randn(4 * d_in, d_in, generator=rng)
    inputs *= torch.randn(d_in, generator=rng).mul(0.7).exp()
    inputs[:, list(dead)] = 0.0
    return torch.randn(d_out, d_in, generator=rng), inputs.T @ inputs


def damped64(moments, damping):
    """Return the damped Hessian in float64; a dead input has the mean of the living diagonals."""
    hessian = moments.double().clone()
    diagonal = hessian.diagonal()
    mean = diagonal[diagonal > 0].mean()
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    return hessian


def loss(weight, new, hessian):
    """Return tr((W - W') H (W - W')^T) in float64."""
    change = weight.double() - new.double()
    return float(((change @ hessian.double()) * change).sum())


def fitted(weight, mask, hessian):
    """Return the best values on a support by the normal equations, row after row, in float64."""
    weight, hessian = weight.double(), hessian.double()
    found = torch.zeros_like(weight)
    for row, kept in enumerate(mask):
        right = (weight[row] @ hessian)[kept]
        found[row, kept] = torch.linalg.solve(hessian[kept][:, kept], right)
    return found
