"""Clients that kept part of a public weight and changed it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedprune.methods.fedspallm.average import WeightSums
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask


def case(
    seed: int, clients: int, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[SparseWeight]]:
    """Return a public weight and clients that keep about half of it, with changed values."""
    rng = np.random.default_rng(seed)
    base = torch.from_numpy(0.05 * rng.standard_normal(shape)).to(dtype)
    common = rng.random(shape) < 0.5
    changes = []
    for _ in range(clients):
        mask = BitMask.from_bool(common ^ (rng.random(shape) < 0.1))
        weight = base + torch.from_numpy(0.01 * rng.standard_normal(shape))
        changes.append(SparseWeight.from_dense(weight.to(dtype), mask))
    return base, changes


def added(
    base: Tensor, changes: Sequence[SparseWeight], weights: Sequence[int] | None = None
) -> WeightSums:
    """Return the sums of these clients."""
    sums = WeightSums(base)
    for change, weight in zip(changes, weights or [1] * len(changes), strict=True):
        sums.add(change, weight)
    return sums
