"""Prune the lowest scores of each comparison group, on any device.

Plain tensor operations are the definition, and the way of every device but the CPU. The CPU's
compiled loops (`fedprune.pruning.selection_kernels`) agree with it bit for bit. Together with
scores that all machines round alike, it makes a mask independent of the device. A score is one
float32 product, ``|weight| * norm``, of a weight that was widened exactly and a norm that is the
correctly rounded root of a float32 (`fedprune.pruning.statistics.ColumnStatistics.norms`);
subnormal numbers are kept.
"""

import torch
from torch import Tensor

from fedprune.config.pattern import pruned_count
from fedprune.pruning.groups import MaskSpec, check_divides


def prune_lowest(scores: Tensor, spec: MaskSpec) -> Tensor:
    """Return the mask that prunes the lowest scores of each group.

    `scores`: importance scores, float32, shape (d_out, d_in), non-negative and finite. Of equal
    scores the lower index is pruned first (a stable ascending sort). Returns boolean mask of the
    same shape and device, True = survives. Every group loses exactly ``pruned_count(size,
    sparsity)`` weights, or M - N of every M. Raises ModelError if an N:M pattern does not divide
    d_in.
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
    """Return whether the compiled loops of the CPU can work on a tensor."""
    return tensor.device.type == "cpu"
