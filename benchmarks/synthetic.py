"""Layers that look like those of a language model: heavy-tailed weights, a few loud inputs."""

import numpy as np
import torch
from torch import Tensor

SHAPES = ((4096, 4096), (11008, 4096))


def layer(shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return (weight, norms of the inputs), float32 values that fp16 can hold."""
    rng = np.random.default_rng(seed)
    rows = rng.lognormal(0, 0.3, (shape[0], 1))
    weight = (rng.standard_t(5, shape) * rows).astype(np.float16).astype(np.float32)
    norms = rng.lognormal(0, 0.5, shape[1])
    loud = rng.random(shape[1]) < 0.005
    norms[loud] *= rng.uniform(5, 50, loud.sum())
    return torch.from_numpy(weight), torch.from_numpy(norms.astype(np.float32))
