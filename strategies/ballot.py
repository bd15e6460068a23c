"""The running votes of one message's blocks: checked masks in, global masks out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedprune.aggregation.select import Rule, select, select_nm
from fedprune.aggregation.votes import VoteCounter
from fedprune.config import RunConfig
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.pruning.check import check_mask
from fedprune.pruning.spec import MaskSpec
from fedprune.records import PruneReply
from fedprune.seeds import derive_seed
from fedprune.wire.bitmask import BitMask
from fedprune.wire.block import decode_block
from fedprune.wire.update import Counts, LinearUpdate
from strategies.block import BlockResult
from strategies.plan import Plan

_WEIGHTS = 1 << 22  # weights whose counts are unpacked at a time


@dataclass
class Ballot:
    """Vote counters of the blocks of one message; memory does not grow with the clients.

    Parameters
    ----------
    plan : Plan
        Shapes and public weights.
    blocks : range
        The blocks voted on.
    config : RunConfig
        How votes are counted.
    specs : Mapping[int, MaskSpec]
        Block -> what every client's mask must satisfy, and the sparsity to reach.
    """

    plan: Plan
    blocks: range
    config: RunConfig
    specs: Mapping[int, MaskSpec]
    _counters: dict[tuple[int, str], VoteCounter] = field(init=False)

    def __post_init__(self) -> None:
        """Make empty counters."""
        self._counters = {
            (block, name): VoteCounter(rows * columns)
            for block in self.blocks
            for name, (rows, columns) in self.plan.shapes[block].items()
        }

    def fold(self, reply: PruneReply, weight: int) -> None:
        """Count one client's masks: all of them, or none if one is wrong.

        Parameters
        ----------
        reply : PruneReply
            The client's masks.
        weight : int
            For how many votes they count.

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
                    check_mask(mask, self.specs[block], name)
            except WireError as error:
                raise ReplyRefusedError(f"block {block}: {error}") from None
            decoded[block] = masks
        for block, masks in decoded.items():
            for name, mask in masks.items():
                self._counters[block, name].add(mask, weight)

    def decide(self, block: int) -> BlockResult:
        """Return a block's global masks and vote histograms, and forget its counters.

        The masks have exactly the zeros that the configuration asks for.
        """
        updates: dict[str, LinearUpdate] = {}
        histograms: dict[str, NDArray[np.int64]] = {}
        voters, effective = 0, 0.0
        for name in self.plan.shapes[block]:
            votes = self._counters.pop((block, name))
            mask = self._select(votes, block, name)
            keeps = _keeps(votes, mask) if self.config.strategy.scaling else None
            updates[name] = LinearUpdate(mask, keeps, votes.total)
            histograms[name] = votes.histogram()
            voters, effective = votes.clients, votes.effective_clients
        return BlockResult(block, updates, histograms, voters, effective)

    def _select(self, votes: VoteCounter, block: int, name: str) -> BitMask:
        strategy, spec = self.config.strategy, self.specs[block]
        rule = Rule(
            group=strategy.group,
            ties=strategy.ties,
            majority_floor=strategy.majority_floor,
            seed=derive_seed(self.config.seed, "ties", block, name),
        )
        magnitude, shape = self.plan.magnitude(block, name), self.plan.shapes[block][name]
        if spec.pattern.structured:
            return select_nm(votes, spec.pattern, magnitude, shape, rule)
        return select(votes, spec.sparsity, magnitude, shape, rule)


def _keeps(votes: VoteCounter, mask: BitMask) -> Counts:
    """Return for each survivor the weight of the clients that kept it."""
    survives = mask.to_bool().reshape(-1)
    parts = []
    for start in range(0, survives.size, _WEIGHTS):
        stop = min(start + _WEIGHTS, survives.size)
        parts.append(votes.total - votes.counts(start, stop)[survives[start:stop]])
    keeps: Counts = np.concatenate(parts).astype(np.min_scalar_type(votes.total))
    return keeps
