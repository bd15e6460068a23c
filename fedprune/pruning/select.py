"""Prune the lowest scores of each comparison group with plain tensor operations, on any device.

This is the definition: the compiled loops of the CPU (`fedprune.pruning.kernels`) and the GPU's
kernels (`fedprune.pruning.triton_masks`) must agree with it bit for bit. Together with scores that
every machine rounds alike, it makes a mask independent of the device. A score is one float32
product, ``|weight| * norm``, of a weight that was widened exactly and a norm that is the correctly
rounded root of a float32 (`fedprune.pruning.statistics.ColumnStatistics.norms`); subnormal numbers
are kept.
"""

import os
from functools import cache
from importlib.util import find_spec
from shutil import which

import torch
from torch import Tensor

from fedprune.config.count import pruned_count
from fedprune.pruning.spec import MaskSpec, check_divides


def prune_lowest(scores: Tensor, spec: MaskSpec) -> Tensor:
    """Return the mask that prunes the lowest scores of each group.

    Parameters
    ----------
    scores : Tensor
        Importance scores, float32, shape (d_out, d_in), non-negative and finite. Of equal scores
        the lower index is pruned first (a stable ascending sort).
    spec : MaskSpec
        Sparsity, pattern and comparison group.

    Returns
    -------
    Tensor
        Boolean mask of the same shape and device, True = survives. Every group loses exactly
        ``pruned_count(size, sparsity)`` weights, or M - N of every M.

    Raises
    ------
    ModelError
        If an N:M pattern does not divide d_in.
    """
    if spec.pattern.n is not None and spec.pattern.m is not None:
        check_divides(spec.pattern, scores.shape[1])
        groups = scores.reshape(-1, spec.pattern.m)
        return prune_count(groups, spec.pattern.m - spec.pattern.n).reshape(scores.shape)
    if spec.group == "layer":
        flat = scores.reshape(1, -1)
        return prune_count(flat, pruned_count(flat.numel(), spec.sparsity)).reshape(scores.shape)
    groups = scores if spec.group == "row" else scores.t()
    mask = prune_count(groups, pruned_count(groups.shape[1], spec.sparsity))
    return mask if spec.group == "row" else mask.t().contiguous()


def prune_count(groups: Tensor, count: int) -> Tensor:
    """Return the mask that prunes the `count` lowest scores of each row of (groups, size) scores.

    Of equal scores the lower index is pruned first.
    """
    order = torch.argsort(groups, dim=1, stable=True)[:, :count]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(1, order, False)


def runs_compiled(tensor: Tensor) -> bool:
    """Return whether compiled loops can work on a tensor: it is on the CPU, and numba is there."""
    return tensor.device.type == "cpu" and _have_numba()


def runs_triton(tensor: Tensor) -> bool:
    """Return whether Triton can work on a tensor: it is on a GPU, and all that it needs is there.

    That is Triton itself, a C compiler for its launchers, and a GPU of compute capability 8 or
    higher.
    """
    on_gpu = tensor.device.type == "cuda" and _have_triton()
    return on_gpu and torch.cuda.get_device_capability(tensor.device) >= (8, 0)


@cache
def _have_numba() -> bool:
    """Return whether numba can be imported; asked late, as that is slow."""
    try:
        import fedprune.jit  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def _have_triton() -> bool:
    compiler = os.environ.get("CC") or which("gcc") or which("clang")
    return compiler is not None and find_spec("triton") is not None
