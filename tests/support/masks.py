"""Masks and weights to compare: helpers that several tests share."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedprune.models.loading import LoadedModel
from fedprune.models.sidecar import SidecarWriter
from fedprune.wire.masks import BitMask

Masks = dict[int, dict[str, BitMask]]


def random_masks(loaded: LoadedModel, survivors: float = 0.5, seed: int = 0) -> Masks:
    """Return random masks for every linear of a model; ``survivors=1`` keeps all weights."""
    generator = np.random.default_rng(seed)
    return {
        block: {
            name: BitMask.from_bool(generator.random(shape) < survivors)
            for name, shape in linears.items()
        }
        for block, linears in enumerate(loaded.layout.shapes())
    }


def state_of(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return a copy of a model's state."""
    return {name: loaded.tensor(name).clone() for name in loaded.names()}


def equal_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Whether two states are the same bit for bit, NaN and signed zeros included."""
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape and torch.equal(*map(_raw, (left[name], right[name])))
        for name in left
    )


def _raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def expected_state(loaded: LoadedModel, masks: Masks) -> dict[str, Tensor]:
    """Return the dense state with zeros where a mask is False, by plain indexing."""
    state = state_of(loaded)
    for block, named in masks.items():
        for name, mask in named.items():
            linear = loaded.layout.linears(block)[name]
            stored = state[loaded.layout.parameter_name(block, name)]
            if linear.expert is not None and linear.expert.stacked:
                stored = stored.chunk(linear.expert.stacked)[linear.expert.index]
            elif linear.expert is not None:
                stored = stored[linear.expert.index]
            keep = torch.from_numpy(mask.to_bool())
            stored[~(keep.T if linear.transposed else keep)] = 0
    return state


def write_sidecar(path, masks, prefix, metadata=None) -> None:
    """Write masks, block -> linear -> mask, as a file beside a model."""
    with SidecarWriter(path, prefix) as writer:
        for block, linears in masks.items():
            writer.add(block, linears)
        writer.close(metadata)
