"""The running votes of one message's blocks: checked masks in, global masks out."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune.config import RunConfig
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.methods.agreement import MaskSampler
from fedprune.methods.decoding import Decoder
from fedprune.methods.state import Arrays, Keepable, gathered, scattered
from fedprune.methods.vote_selection import Rule, select, select_nm
from fedprune.methods.votes import VoteCounter
from fedprune.pruning.groups import MaskSpec, check_mask
from fedprune.pruning.statistics import ColumnStatistics
from fedprune.pruning.wanda import WandaPruner
from fedprune.records import PruneReply
from fedprune.seeds import derive_seed
from fedprune.wire.changes import Change, Counts, LinearUpdate, mask_of
from fedprune.wire.masks import BitMask, decode_masks
from strategies.plan import Plan
from strategies.state import BlockResult

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
    _decoders: dict[tuple[int, tuple[str, ...]], Decoder] = field(init=False, default_factory=dict)
    _samplers: dict[int, MaskSampler] = field(init=False)

    def __post_init__(self) -> None:
        """Make empty counters."""
        self._counters = {
            (block, name): VoteCounter(rows * columns)
            for block in self.blocks
            for name, (rows, columns) in self.plan.shapes[block].items()
        }
        self._samplers = {b: self.plan.mask_sampler(b, self.config.seed) for b in self.blocks}
        if self.config.strategy.decode:
            self._decoders = {
                (block, linears): Decoder([self._magnitudes(block, name) for name in linears])
                for block in self.blocks
                for linears in self.plan.inputs[block]
            }

    def fold(self, reply: PruneReply, weight: int, client: str) -> float:
        """Count one client's masks: all of them, or none if one is wrong.

        Parameters
        ----------
        reply : PruneReply
            The client's masks.
        weight : int
            For how many votes they count.
        client : str
            Whose they are, for the sample of the result.

        Returns
        -------
        float
            With `strategy.decode` the largest share of a linear's weights on which its mask is not
            one that Wanda could have made; an honest one has almost none.

        Raises
        ------
        ReplyRefusedError
            If a mask is malformed or does not have the zeros that the configuration asks for.
        """
        decoded: dict[int, dict[str, BitMask]] = {}
        for block in self.blocks:
            try:
                masks = decode_masks(reply.blocks[block], self.plan.shapes[block])
                for name, mask in masks.items():
                    check_mask(mask, self.specs[block], name)
            except WireError as error:
                raise ReplyRefusedError(f"block {block}: {error}") from None
            decoded[block] = masks
        for block, masks in decoded.items():
            for name, mask in masks.items():
                self._counters[block, name].add(mask, weight)
            self._samplers[block].add(client, masks)
        return self._decode(decoded, weight)

    def decide(self, block: int) -> BlockResult:
        """Return a block's global masks and vote histograms, and forget its counters.

        The masks have exactly the zeros that the configuration asks for.
        """
        updates: dict[str, Change] = {}
        histograms: dict[str, NDArray[np.int64]] = {}
        voters, effective = 0, 0.0
        decoded = self._decoded(block) if self.config.strategy.decode else {}
        for name in self.plan.shapes[block]:
            votes = self._counters.pop((block, name))
            mask = decoded.get(name) or self._select(votes, block, name)
            keeps = _keeps(votes, mask) if self.config.strategy.scaling else None
            updates[name] = LinearUpdate(mask, keeps, votes.total)
            histograms[name] = votes.histogram()
            voters, effective = votes.clients, votes.effective_clients
        sample = self._samplers.pop(block).close({n: mask_of(c) for n, c in updates.items()})
        return BlockResult(block, updates, voters, effective, histograms, sample)

    def state(self) -> Arrays:
        """Return all that was counted as arrays."""
        return gathered(self._parts())

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another ballot's."""
        scattered(arrays, self._parts())

    def _parts(self) -> dict[str, Keepable]:
        return {
            **{f"votes/{block}/{name}": one for (block, name), one in self._counters.items()},
            **{f"norms/{b}/{linears[0]}": one for (b, linears), one in self._decoders.items()},
            **{f"sample/{block}": one for block, one in self._samplers.items()},
        }

    def _decode(self, decoded: Mapping[int, Mapping[str, BitMask]], weight: int) -> float:
        """Fit a client's input norms to its masks and add them to the pools."""

        def fit(group: tuple[int, tuple[str, ...]]) -> float:
            block, linears = group
            masks = [decoded[block][name] for name in linears]
            return max(self._decoders[group].add(masks, weight))

        if not self._decoders:
            return 0.0
        # The loops leave the interpreter's lock, so inputs are fitted side by side.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return max(threads.map(fit, self._decoders), default=0.0)

    def _magnitudes(self, block: int, name: str) -> NDArray[np.float32]:
        return self.plan.magnitude(block, name).reshape(self.plan.shapes[block][name])

    def _decoded(self, block: int) -> dict[str, BitMask]:
        """Prune a block on the norms that its masks told."""
        masks: dict[str, BitMask] = {}
        for linears in self.plan.inputs[block]:
            sums = self._decoders.pop((block, linears)).pooled()
            statistics = ColumnStatistics(torch.from_numpy(sums), 1)
            for name in linears:
                weight = self.plan.weight(block, name)
                masks[name] = WandaPruner().prune(weight, statistics, self.specs[block])
        return masks

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
