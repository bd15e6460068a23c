"""Zeros put into copies of a model's weights, and survivors scaled or replaced.

Weights are filled with zero rather than multiplied by the mask: a pruned NaN or infinity must
become zero as well. Scaling multiplies in float32 and rounds once, to the weight's own dtype; new
values are rounded to it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.layout import DecoderLayout, LinearRef
from fedprune.wire.changes import Change, LinearUpdate, SparseWeight, mask_of
from fedprune.wire.quantized import QuantizedWeight

Changes = Mapping[int, Mapping[str, Change]]
"""Block -> linear -> what becomes of it; what is not named stays dense."""


_C = TypeVar("_C", bound=Change)

_AS_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Recalled(Mapping[int, Mapping[str, _C]]):
    """Changes that are fetched block by block when they are asked for, and not kept."""

    blocks: Sequence[int]
    recall: Callable[[int], Mapping[str, _C]]  # block -> its changes

    def __getitem__(self, block: int) -> Mapping[str, _C]:
        """Return a block's changes; KeyError if there is no such block."""
        if block not in self.blocks:
            raise KeyError(block)
        return self.recall(block)

    def __contains__(self, block: object) -> bool:
        """Whether there is such a block; it is not fetched."""
        return block in self.blocks

    def __iter__(self) -> Iterator[int]:
        """Return the blocks."""
        return iter(self.blocks)

    def __len__(self) -> int:
        """Return how many blocks there are."""
        return len(self.blocks)


def changed_survivors(weight: Tensor, change: Change) -> SparseWeight:
    """Return what becomes of a (d_out, d_in) matrix as survivors with values, of the same type."""
    if isinstance(change, SparseWeight):
        return change
    return SparseWeight.from_dense(_changed(weight, change), mask_of(change))


def lost_weight(weight: Tensor, change: Change) -> Tensor:
    """Return a matrix less what becomes of it, W - W', float32, shape (d_out, d_in)."""
    return weight.to(torch.float32) - _changed(weight, change).to(torch.float32)


def _changed(weight: Tensor, change: Change) -> Tensor:
    """Return what becomes of a (d_out, d_in) matrix, of the same type."""
    changed = weight.detach().clone(memory_format=torch.contiguous_format)
    _write(changed, change)
    return changed


def _write(weight: Tensor, change: Change) -> None:
    """Change a (d_out, d_in) matrix in place."""
    if isinstance(change, SparseWeight | QuantizedWeight):
        weight.copy_(change.dense())
        return
    factors = change.factors() if isinstance(change, LinearUpdate) else None
    if factors is not None:
        weight.copy_(weight.to(torch.float32) * torch.from_numpy(factors).to(weight.device))
    kept = torch.from_numpy(mask_of(change).to_bool()).to(weight.device)
    # Bits times 1 or 0: NaN becomes 0 too, and vectors do it, which `masked_fill_` has none for.
    weight.view(_AS_BITS[weight.dtype.itemsize]).mul_(kept)


def changed_tensors(
    layout: DecoderLayout, block: int, tensors: Mapping[str, Tensor], changes: Mapping[str, Change]
) -> dict[str, Tensor]:
    """Return a block's tensors, the weights of some of its linears changed.

    `tensors`: name inside the block -> tensor as stored; unchanged. `changes`: linear -> change;
    one that is not named stays dense. Raises ModelError: a block or linear that the model has not,
    or a mask of another shape.
    """
    changed = dict(tensors)
    for linear, change in _pairs(layout, block, changes):
        stored = tensors[linear.key]
        if changed[linear.key] is stored:  # of an expert's slice there may be a copy already
            changed[linear.key] = stored.clone(memory_format=torch.contiguous_format)
        _write(linear.orient(changed[linear.key]), change)
    return changed


def _pairs(
    layout: DecoderLayout, block: int, masks: Mapping[str, Change]
) -> list[tuple[LinearRef, Change]]:
    """Return each change of a block with its linear map."""
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
