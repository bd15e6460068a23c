"""Prune a model block by block on one client's samples."""

from collections.abc import Iterator, Mapping

from fedprune.errors import ModelError
from fedprune.models.changes import Changes, Recalled
from fedprune.models.device import explain_out_of_memory
from fedprune.pruning.driver import BlockWalk
from fedprune.pruning.pruners import Pruner
from fedprune.pruning.spec import MaskSpec
from fedprune.pruning.statistics import Statistics
from fedprune.wire.changes import Change


def prune_block(walk: BlockWalk, pruner: Pruner, spec: MaskSpec) -> dict[str, Change]:
    """Return what a pruner makes of the block where a walk stands; the walk stays there.

    Parameters
    ----------
    walk : BlockWalk
        Stands at the block.
    pruner : Pruner
        Turns each weight and its statistics into a mask, or into survivors with new values.
    spec : MaskSpec
        Sparsity, pattern and comparison group.

    Returns
    -------
    dict[str, BitMask or SparseWeight]
        Name of the linear -> what becomes of it.

    Raises
    ------
    ModelError
        As :meth:`BlockWalk.collect` and the pruner, which then tells of the linear by name.
    """
    statistics: Mapping[str, Statistics] = {}
    if pruner.needs != "nothing":
        statistics = walk.collect(pruner.needs)
    return prune_on(walk, statistics, pruner, spec)


def prune_on(
    walk: BlockWalk, statistics: Mapping[str, Statistics], pruner: Pruner, spec: MaskSpec
) -> dict[str, Change]:
    """Prune the block where a walk stands on given statistics; else as :func:`prune_block`."""
    changes: dict[str, Change] = {}
    with explain_out_of_memory(f"pruning block {walk.position}", *walk.limits.keys):
        for name, weight in walk.weights().items():
            try:
                changes[name] = pruner.prune(weight, statistics.get(name), spec)
            except ModelError as error:
                raise ModelError(f"`{walk.full_name(name)}`: {error}") from error
    return changes


def prune_blocks(
    walk: BlockWalk, pruner: Pruner, specs: Mapping[int, MaskSpec]
) -> Iterator[tuple[int, dict[str, Change]]]:
    """Prune consecutive blocks, each on inputs made by the pruned blocks before it.

    Parameters
    ----------
    walk : BlockWalk
        Stands at the first of the blocks; when a block is yielded it stands at the next. Nothing
        comes after a model's last block, so its output is not computed and ``hidden`` ends empty.
    pruner : Pruner
        Turns each weight and its statistics into a mask, or into survivors with new values.
    specs : Mapping[int, MaskSpec]
        Index of the block -> its sparsity, pattern and comparison group; consecutive blocks.

    Yields
    ------
    tuple[int, dict[str, BitMask or SparseWeight]]
        Index of the block and what becomes of its linears.
    """
    for index, spec in specs.items():
        if index != walk.position or not walk.blocks_left:
            raise ModelError(
                f"Block {index} was asked for, but the walk is at block {walk.position} and has "
                f"{walk.blocks_left} blocks left. Prune the blocks in order."
            )
        changes = prune_block(walk, pruner, spec)
        _go_on(walk, pruner, changes)
        yield index, changes


def pruned_in_passing(walk: BlockWalk, pruner: Pruner, specs: Mapping[int, MaskSpec]) -> Changes:
    """Return what :func:`prune_blocks` makes, each block when it is asked for, none kept.

    For a model that is evaluated once, block by block: blocks must be asked for once each, in
    order.
    """
    made = prune_blocks(walk, pruner, specs)

    def recall(block: int) -> Mapping[str, Change]:
        index, changes = next(made)
        if index != block:
            raise RuntimeError(f"block {block} was asked for, block {index} came next.")
        return changes

    return Recalled(tuple(specs), recall)


def _go_on(walk: BlockWalk, pruner: Pruner, changes: Mapping[str, Change]) -> None:
    """Leave a block as changed, running it only where somebody needs what it returns."""
    if pruner.needs != "nothing" and walk.blocks_left > 1:
        walk.advance(changes)
    else:
        walk.skip()
