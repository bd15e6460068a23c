"""The running votes of one message's blocks: checked masks in, global masks out."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedprune.aggregation.select import select_layer, select_nm
from fedprune.aggregation.votes import VoteCounter
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.pruning.check import check_mask
from fedprune.pruning.spec import MaskSpec, pruned_count
from fedprune.records import PruneReply
from fedprune.wire.bitmask import BitMask
from fedprune.wire.block import decode_block
from strategies.plan import Plan


@dataclass
class Ballot:
    """Vote counters of the blocks of one message; memory does not grow with the clients.

    Parameters
    ----------
    plan : Plan
        Shapes and public weights.
    blocks : range
        The blocks voted on.
    spec : MaskSpec
        What every client's mask must satisfy, and the sparsity to reach.
    """

    plan: Plan
    blocks: range
    spec: MaskSpec
    _counters: dict[tuple[int, str], VoteCounter] = field(init=False)

    def __post_init__(self) -> None:
        """Make empty counters."""
        self._counters = {
            (block, name): VoteCounter(rows * columns)
            for block in self.blocks
            for name, (rows, columns) in self.plan.shapes[block].items()
        }

    def fold(self, reply: PruneReply) -> None:
        """Count one client's masks: all of them, or none if one is wrong.

        Raises
        ------
        ReplyRefusedError
            If a mask is malformed or does not have the zeros that the configuration asks for.
        """
        decoded: dict[int, dict[str, BitMask]] = {}
        for block in self.blocks:
            try:
                masks = decode_block(reply.blocks[block], self.plan.shapes[block])
                for name, mask in masks.items():
                    check_mask(mask, self.spec, name)
            except WireError as error:
                raise ReplyRefusedError(f"block {block}: {error}") from None
            decoded[block] = masks
        for block, masks in decoded.items():
            for name, mask in masks.items():
                self._counters[block, name].add(mask)

    def decide(self, block: int) -> tuple[dict[str, BitMask], dict[str, NDArray[np.int64]]]:
        """Return a block's global masks and vote histograms, and forget its counters.

        Returns
        -------
        masks : dict[str, BitMask]
            Name of the linear -> mask with exactly ``floor(d_out * d_in * sparsity)`` zeros.
        histograms : dict[str, NDArray]
            Name of the linear -> number of weights with 0..clients prune votes.
        """
        masks: dict[str, BitMask] = {}
        histograms: dict[str, NDArray[np.int64]] = {}
        for name, shape in self.plan.shapes[block].items():
            votes = self._counters.pop((block, name))
            masks[name] = self._select(votes, self.plan.magnitude(block, name), shape)
            histograms[name] = votes.histogram()
        return masks, histograms

    def _select(
        self, votes: VoteCounter, magnitude: NDArray[np.float32], shape: tuple[int, int]
    ) -> BitMask:
        if self.spec.pattern.structured:
            return select_nm(votes, self.spec.pattern, magnitude, shape)
        prune = pruned_count(shape[0] * shape[1], self.spec.sparsity)
        return select_layer(votes, prune, magnitude, shape)
