"""Train a pruned model on, with its zeros kept."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedprune.models.changes import changed_tensors
from fedprune.models.layout import find_layout
from fedprune.wire.masks import BitMask


def keep_zeros(
    model: nn.Module, masks: Mapping[int, Mapping[str, BitMask]]
) -> list[RemovableHandle]:
    """Set a model's pruned weights to zero, and their gradients from now on.

    An optimizer that changes each weight by its own gradients alone, as SGD and Adam do with
    momentum and weight decay, then leaves them at zero. Costs a byte a weight.

    `model`: the decoder, on the device that it is trained on. `masks`: block -> linear -> mask, as
    :func:`fedprune.models.sidecar.read_sidecar` gives them. Returns one a weight that is trained;
    ``remove()`` lets its zeros go. Raises ModelError if the masks are another model's.
    """
    layout = find_layout(model)
    handles = []
    for block, named in masks.items():
        inside = range(len(layout.blocks))
        parameters = dict(layout.blocks[block].named_parameters()) if block in inside else {}
        ones = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
        kept = changed_tensors(layout, block, ones, named)
        for linear in named:
            name = f"{linear}.weight"
            handles += _keep(parameters[name], kept[name])
    return handles


def _keep(parameter: nn.Parameter, kept: Tensor) -> list[RemovableHandle]:
    with torch.no_grad():
        parameter.masked_fill_(~kept, 0)
    if not parameter.requires_grad:
        return []
    handle: RemovableHandle = parameter.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: gradient.masked_fill(~kept, 0)
    )
    return [handle]
