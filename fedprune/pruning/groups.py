"""Comparison groups: how many weights a mask prunes, and within which groups they compete.

The counts are exact: every group loses ``floor(size * sparsity)`` weights, where the sparsity is
the decimal number that the configuration shows, not its nearest binary fraction. A received mask
is checked against them: a client that abstains, over-votes or sends noise shows there.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.config.allocation import SURVEYED, allocation_of
from fedprune.config.pattern import GROUPS, Pattern, Rounding, pruned_count
from fedprune.config.schema import RunConfig
from fedprune.config.sparsity import block_sparsity, linear_sparsities
from fedprune.errors import ConfigError, ModelError, WireError
from fedprune.wire.masks import BitMask

NOT_FINITE = (
    "Importance scores hold NaN or infinite values. "
    "Check the weights, and the calibration inputs of this linear."
)


_MEAN = 1e-3  # how far the mean of listed sparsities may be from `sparsity`


@dataclass(frozen=True)
class MaskSpec:
    """What a mask must look like.

    Raises ConfigError if sparsity or group are out of range.
    """

    # share of each comparison group that is pruned, 0 <= sparsity < 1. Not used by an N:M pattern,
    # which fixes the share itself.
    sparsity: float
    pattern: Pattern  # `unstructured` or N:M
    # comparison group of an unstructured mask: 'layer', 'row' (one output) or 'column' (one input).
    # An N:M pattern compares M consecutive inputs of a row whatever the group.
    group: str
    # how the count of a group is rounded; pruners round down, FedSpaLLM's expansion up
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        """Refuse values that no mask can have."""
        if not 0.0 <= self.sparsity < 1.0:
            raise ConfigError(f"`sparsity` must be at least 0 and below 1, got {self.sparsity}.")
        if self.group not in GROUPS:
            raise ConfigError(
                f"`pruner.group` must be 'layer', 'row' or 'column', got '{self.group}'."
            )


@dataclass(frozen=True)
class BlockSpec:
    """What the masks of a block's linears must look like."""

    sparsity: float  # of every linear that has none of its own
    pattern: Pattern  # see `MaskSpec`
    group: str  # see `MaskSpec`
    rounding: Rounding = "floor"  # see `MaskSpec`
    # name of a linear -> sparsity of its own; a ``*`` stands for the number of each expert
    linears: Mapping[str, float] = field(default_factory=dict)

    def of(self, name: str) -> MaskSpec:
        """Return what the mask of one of the block's linears must look like."""
        own = self.linears.get(name, self.linears.get(any_expert(name), self.sparsity))
        return MaskSpec(own, self.pattern, self.group, self.rounding)


def any_expert(name: str) -> str:
    """Return the name that all experts' linears have together: ``mlp.experts.*.up_proj``."""
    return re.sub(r"\.[0-9]+(?=\.)", ".*", name)


def check_divides(pattern: Pattern, d_in: int) -> None:
    """Refuse an N:M pattern whose M does not divide d_in.

    Raises ModelError naming pattern and d_in.
    """
    if pattern.m is not None and d_in % pattern.m:
        raise ModelError(
            f"Pattern '{pattern}' needs d_in divisible by {pattern.m}, got {d_in}. "
            "Choose an M that divides it, or `pruner.pattern=unstructured`."
        )


def block_spec(config: RunConfig, block: int, num_blocks: int) -> BlockSpec:
    """Return what a client's masks of a block must look like; as :func:`block_specs`."""
    return BlockSpec(
        block_sparsity(config, block, num_blocks),
        config.pruner.pattern,
        config.pruner.group,
        linears=linear_sparsities(config, block, num_blocks),
    )


def block_specs(config: RunConfig, blocks: range, num_blocks: int) -> dict[int, BlockSpec]:
    """Return what a client's masks of each block must look like.

    Raises ConfigError if the allocation is for another number of blocks.
    """
    return {block: block_spec(config, block, num_blocks) for block in blocks}


def check_allocation(config: RunConfig, shapes: Sequence[Mapping[str, tuple[int, int]]]) -> None:
    """Refuse an allocation that is another model's, or has another mean than `sparsity`.

    Nothing is said of one that clients' statistics decide.
    """
    if allocation_of(config) in SURVEYED:
        return
    specs = block_specs(config, range(len(shapes)), len(shapes))
    if config.allocation.name != "per_linear":
        return
    known = {one for linears in shapes for name in linears for one in (name, any_expert(name))}
    for name in config.allocation.named:
        if name not in known:
            raise ConfigError(
                f"`allocation.linears` names '{name}', which no block of the model has. Its "
                f"linears are {', '.join(dict.fromkeys(map(any_expert, shapes[0])))}."
            )
    zeros = total = 0.0
    for block, linears in enumerate(shapes):
        for name, (rows, columns) in linears.items():
            zeros += specs[block].of(name).sparsity * rows * columns
            total += rows * columns
    if total and abs(zeros / total - config.sparsity) > _MEAN:
        raise ConfigError(
            f"The mean of `allocation.linears` over all weights must be `sparsity` "
            f"{config.sparsity:g}, got {zeros / total:.4f}. Set sparsity={zeros / total:.4f}, or "
            "change the list."
        )


def check_mask(mask: BitMask, spec: MaskSpec, name: str) -> None:
    """Refuse a mask whose groups do not have exactly the right number of survivors.

    Raises WireError naming linear, group, expected and found survivors.
    """
    if spec.pattern.structured or spec.group == "column":
        check_votes(mask.to_bool(), 1, spec, name)
        return
    # Without unpacking it.
    found = np.array([mask.survivors]) if spec.group == "layer" else mask.row_survivors()
    _check_groups(found, *_survivors(mask.shape, spec), name)


def check_votes(keeps: NDArray[Any], clients: int, spec: MaskSpec, name: str) -> None:
    """Refuse sums of masks whose groups do not have the survivors of so many clients.

    `keeps`: how many clients keep each weight, shape (d_out, d_in). Errors as :func:`check_mask`.
    """
    if spec.pattern.m is not None:
        found = keeps.reshape(-1, spec.pattern.m).sum(axis=1, dtype=np.int64)
    elif spec.group == "layer":
        found = np.array([keeps.sum(dtype=np.int64)])
    else:
        found = keeps.sum(axis=1 if spec.group == "row" else 0, dtype=np.int64)
    expected, what = _survivors((len(keeps), keeps.shape[1]), spec)
    _check_groups(found, clients * expected, what, name)


def _check_groups(found: NDArray[np.int64], expected: int, what: str, name: str) -> None:
    wrong = np.flatnonzero(found != expected)
    if wrong.size:
        first = int(wrong[0])
        raise WireError(
            f"linear '{name}': {what} {first} must have {expected} survivors, got "
            f"{int(found[first])} ({wrong.size} of {found.size} are wrong)."
        )


def _survivors(shape: tuple[int, int], spec: MaskSpec) -> tuple[int, str]:
    """Return how many of a group survive, and what a group is called."""
    if spec.pattern.n is not None and spec.pattern.m is not None:
        return spec.pattern.n, f"group of {spec.pattern.m} inputs"
    size = {"layer": shape[0] * shape[1], "row": shape[1], "column": shape[0]}[spec.group]
    what = "matrix" if spec.group == "layer" else spec.group
    return size - pruned_count(size, spec.sparsity, spec.rounding), what
