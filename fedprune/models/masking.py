"""Zeros put into a model's weights, and survivors scaled or replaced, for good or for a while.

Weights are filled with zero rather than multiplied by the mask: a pruned NaN or infinity must
become zero as well. Scaling multiplies in float32 and rounds once, to the weight's own dtype; new
values are rounded to it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.layout import DecoderLayout, LinearRef
from fedprune.models.loading import LoadedModel
from fedprune.wire.change import Change, LinearUpdate, keeps_survivors, mask_of
from fedprune.wire.sparse import SparseWeight


def masked_weight(stored: Tensor, linear: LinearRef, change: Change) -> Tensor:
    """Return a copy of a weight with its pruned entries zero, the others as a change says.

    Parameters
    ----------
    stored : Tensor
        The weight as its module stores it, on any device.
    linear : LinearRef
        Which linear map it belongs to.
    change : BitMask or LinearUpdate or SparseWeight
        Shape (d_out, d_in), True where a weight survives.
    """
    if isinstance(change, SparseWeight):
        return linear.orient(change.dense()).to(stored.device, stored.dtype).contiguous()
    pruned = linear.orient(_pruned(change, stored.device))
    factors = _factors(change, stored.device)
    if factors is None:
        return stored.masked_fill(pruned, 0)
    return _scaled(stored, linear.orient(factors)).masked_fill_(pruned, 0)


def apply_masks(model: LoadedModel, masks: Mapping[int, Mapping[str, Change]]) -> None:
    """Set the pruned weights of a model to zero and change the others, in place and for good.

    Parameters
    ----------
    model : LoadedModel
        The model to change.
    masks : Mapping[int, Mapping[str, BitMask or LinearUpdate or SparseWeight]]
        Block -> linear -> change; what is not named stays dense, masks leave survivors alone.

    Raises
    ------
    ModelError
        A block or linear that the model has not, or a mask of another shape; checked before the
        first weight changes.
    """
    for linear, change in _pair_all(model.layout, masks):
        _apply(linear.weight(), change)


@contextmanager
def masked(model: LoadedModel, masks: Mapping[int, Mapping[str, Change]]) -> Iterator[None]:
    """Prune a model inside a ``with`` statement; afterwards its weights are as they were.

    Costs the memory of the weights that change, which are kept aside. Parameters and errors are
    those of :func:`apply_masks`.
    """
    kept: list[tuple[LinearRef, Tensor | None, Tensor]] = []
    targets = _pair_all(model.layout, masks)
    try:
        for linear, change in targets:
            weight = linear.weight()
            if keeps_survivors(change):
                pruned = _pruned(change, weight.device)
                kept.append((linear, pruned, weight[pruned]))
            else:
                kept.append((linear, None, weight.clone()))
            _apply(weight, change)
        yield
    finally:
        for linear, places, values in kept:
            # Asked for again: moving a model to a device and back gives it new storage.
            weight = linear.weight()
            if places is None:
                weight.copy_(values)
            else:
                weight[places.to(weight.device)] = values.to(weight.device)


def pair_masks(
    layout: DecoderLayout, block: int, masks: Mapping[str, Change]
) -> list[tuple[LinearRef, Change]]:
    """Return each mask of a block with its linear map.

    Parameters
    ----------
    layout : DecoderLayout
        The model's blocks.
    block : int
        Index of the block.
    masks : Mapping[str, BitMask or LinearUpdate or SparseWeight]
        Linear -> change; need not name every linear.

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
    layout: DecoderLayout, masks: Mapping[int, Mapping[str, Change]]
) -> list[tuple[LinearRef, Change]]:
    return [pair for block, named in masks.items() for pair in pair_masks(layout, block, named)]


def _apply(weight: Tensor, change: Change) -> None:
    """Change a (d_out, d_in) weight in place."""
    if isinstance(change, SparseWeight):
        weight.copy_(change.dense())
        return
    factors = _factors(change, weight.device)
    if factors is not None:
        weight.copy_(_scaled(weight, factors))
    weight.masked_fill_(_pruned(change, weight.device), 0)


def _pruned(change: Change, device: torch.device) -> Tensor:
    """Return the complement of a mask, boolean (d_out, d_in), on the weight's device."""
    return torch.from_numpy(mask_of(change).to_bool()).to(device).logical_not_()


def _factors(change: Change, device: torch.device) -> Tensor | None:
    """Return the factors of a scaled update, float32 (d_out, d_in), on the weight's device."""
    factors = change.factors() if isinstance(change, LinearUpdate) else None
    return None if factors is None else torch.from_numpy(factors).to(device)


def _scaled(weight: Tensor, factors: Tensor) -> Tensor:
    return (weight.to(torch.float32) * factors).to(weight.dtype)
