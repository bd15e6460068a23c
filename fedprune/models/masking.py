"""Zeros put into a model's weights, for good or for a while.

Weights are filled with zero rather than multiplied by the mask: a pruned NaN or infinity must
become zero as well.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.layout import DecoderLayout, LinearRef
from fedprune.models.loading import LoadedModel
from fedprune.wire.bitmask import BitMask


def masked_weight(stored: Tensor, linear: LinearRef, mask: BitMask) -> Tensor:
    """Return a copy of a weight with its pruned entries zero.

    Parameters
    ----------
    stored : Tensor
        The weight as its module stores it, on any device.
    linear : LinearRef
        Which linear map it belongs to.
    mask : BitMask
        Shape (d_out, d_in), True where a weight survives.
    """
    return stored.masked_fill(linear.orient(_pruned(linear, mask, stored.device)), 0)


def apply_masks(model: LoadedModel, masks: Mapping[int, Mapping[str, BitMask]]) -> None:
    """Set the pruned weights of a model to zero, in place and for good.

    Parameters
    ----------
    model : LoadedModel
        The model to change.
    masks : Mapping[int, Mapping[str, BitMask]]
        Block -> linear -> mask; what is not named stays dense.

    Raises
    ------
    ModelError
        A block or linear that the model has not, or a mask of another shape; checked before the
        first weight changes.
    """
    for linear, mask in _pair_all(model.layout, masks):
        weight = linear.weight()
        weight.masked_fill_(_pruned(linear, mask, weight.device), 0)


@contextmanager
def masked(model: LoadedModel, masks: Mapping[int, Mapping[str, BitMask]]) -> Iterator[None]:
    """Prune a model inside a ``with`` statement; afterwards its weights are as they were.

    Costs the memory of the pruned weights, which are kept aside. Parameters and errors are those
    of :func:`apply_masks`.
    """
    kept: list[tuple[LinearRef, Tensor, Tensor]] = []
    targets = _pair_all(model.layout, masks)
    try:
        for linear, mask in targets:
            weight = linear.weight()
            pruned = _pruned(linear, mask, weight.device)
            kept.append((linear, pruned, weight[pruned]))
            weight.masked_fill_(pruned, 0)
        yield
    finally:
        for linear, pruned, values in kept:
            # Asked for again: moving a model to a device and back gives it new storage.
            weight = linear.weight()
            weight[pruned.to(weight.device)] = values.to(weight.device)


def pair_masks(
    layout: DecoderLayout, block: int, masks: Mapping[str, BitMask]
) -> list[tuple[LinearRef, BitMask]]:
    """Return each mask of a block with its linear map.

    Parameters
    ----------
    layout : DecoderLayout
        The model's blocks.
    block : int
        Index of the block.
    masks : Mapping[str, BitMask]
        Linear -> mask; need not name every linear.

    Raises
    ------
    ModelError
        A block or linear that the model has not, or a mask of another shape.
    """
    advice = "Use masks made for this model."
    if not 0 <= block < len(layout.blocks):
        raise ModelError(
            f"There is a mask for block {block}, but `{layout.prefix}` has blocks 0 to "
            f"{len(layout.blocks) - 1}. {advice}"
        )
    linears = layout.linears(block)
    pairs = []
    for name, mask in masks.items():
        where = layout.parameter_name(block, name)
        if name not in linears:
            raise ModelError(
                f"There is a mask for `{where}`, but that block has {', '.join(linears)}. {advice}"
            )
        if mask.shape != linears[name].shape:
            raise ModelError(
                f"The mask of `{where}` has shape {mask.shape}, its weight "
                f"{linears[name].shape}. {advice}"
            )
        pairs.append((linears[name], mask))
    return pairs


def _pair_all(
    layout: DecoderLayout, masks: Mapping[int, Mapping[str, BitMask]]
) -> list[tuple[LinearRef, BitMask]]:
    return [pair for block, named in masks.items() for pair in pair_masks(layout, block, named)]


def _pruned(linear: LinearRef, mask: BitMask, device: torch.device) -> Tensor:
    """Return the complement of a mask, boolean (d_out, d_in), on the weight's device."""
    return torch.from_numpy(mask.to_bool()).to(device).logical_not_()
