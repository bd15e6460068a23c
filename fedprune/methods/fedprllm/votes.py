"""The running votes on one block: checked masks in, global masks out."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune.methods.abstention import abstains
from fedprune.methods.agreement import MaskSampler
from fedprune.methods.decoding import Decoder
from fedprune.methods.exchange import (
    BlockAggregator,
    BlockExchange,
    BlockResult,
    BlockTask,
    Contributor,
)
from fedprune.methods.state import Arrays, Keepable, gathered, scattered
from fedprune.methods.vote_selection import Rule, select, select_nm
from fedprune.methods.votes import VoteCounter, checked_votes
from fedprune.methods.word_sums import Layout, Words, prefixed
from fedprune.pruning.groups import block_spec, check_mask
from fedprune.pruning.statistics import ColumnStatistics
from fedprune.pruning.wanda import MagnitudePruner, WandaPruner
from fedprune.seeds import derive_seed
from fedprune.wire.changes import Change, Counts, LinearUpdate, mask_of
from fedprune.wire.masks import BitMask, decode_masks

_WEIGHTS = 1 << 22  # weights whose counts are unpacked at a time
_VIOLATIONS = "violations"


class VoteAggregator(BlockAggregator[dict[str, BitMask]]):
    """Vote counters of one block; memory does not grow with the clients.

    With `strategy.decode` the figures get "violations": for each client the largest share of a
    linear's weights on which its mask is not one that Wanda could have made; an honest one has
    almost none.
    """

    def __init__(self, exchange: BlockExchange, task: BlockTask) -> None:
        super().__init__(exchange, task)
        self.sums_integers = not exchange.config.strategy.decode
        config, block, model = exchange.config, task.block, task.model
        self._spec = block_spec(config, block, model.num_blocks)
        self._counters = {name: VoteCounter(r * c) for name, (r, c) in self.shapes.items()}
        self._sampler = MaskSampler.of_block(model, block, config.seed)
        self._decoders: dict[tuple[str, ...], Decoder] = {}
        if config.strategy.decode:
            self._decoders = {
                linears: Decoder([self._magnitudes(name) for name in linears])
                for linears in model.inputs[block]
            }

    def check(self, payload: bytes, client: Contributor) -> dict[str, BitMask]:
        """Decode a client's masks, which must have the zeros that the configuration asks for."""
        masks = decode_masks(payload, self.shapes)
        for name, mask in self._votes(masks).items():
            check_mask(mask, self._spec.of(name), name)
        return masks

    def add(self, answer: dict[str, BitMask], client: Contributor) -> None:
        """Count one client's masks."""
        votes = self._votes(answer)
        for name, mask in votes.items():
            self._counters[name].add(mask, client.weight)
        self._sampler.add(client.name, answer)
        if self._decoders:
            shares = self.task.figures.setdefault(_VIOLATIONS, {})
            share = self._decode(votes, client.weight)
            shares[client.name] = max(share, shares.get(client.name, 0.0))

    def layout(self, clients: int) -> Layout:
        """Return the words of a client's votes on each linear."""
        return prefixed({name: one.layout(clients) for name, one in self._counters.items()})

    def words(self, answer: dict[str, BitMask], client: Contributor, clients: int) -> Words:
        """Return one client's checked masks as votes to keep."""
        votes = self._votes(answer)
        return prefixed(
            {name: one.words(votes.get(name), clients) for name, one in self._counters.items()}
        )

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Take the votes of all clients; each group has as many as they have survivors."""
        routed = self.task.model.routed(self.task.block)
        parts = checked_votes(total, len(clients), self._spec, self.shapes, routed)
        for name, part in parts.items():
            self._counters[name].add_total(part)

    def close(self) -> BlockResult:
        """Return the global masks, which have exactly the zeros that are asked for."""
        changes: dict[str, Change] = {}
        histograms: dict[str, NDArray[np.int64]] = {}
        decoded = self._decoded()
        heard = {name: _voters(votes) for name, votes in self._counters.items()}
        for name in self.shapes:
            votes = self._counters.pop(name)
            if not votes.clients:  # an expert that nobody's tokens reached
                changes[name] = self._by_magnitude(name)
                continue
            mask, spec = decoded.get(name), self._spec.of(name)
            if mask is None:
                what = self.task.model.magnitude(self.task.block, name), self.shapes[name]
                mask = (
                    select_nm(votes, spec.pattern, *what, self._rule(name))
                    if spec.pattern.structured
                    else select(votes, spec.sparsity, *what, self._rule(name))
                )
            keeps = _keeps(votes, mask) if self.exchange.config.strategy.scaling else None
            changes[name] = LinearUpdate(mask, keeps, votes.total)
            histograms[name] = votes.histogram()
        sample = self._sampler.close({name: mask_of(change) for name, change in changes.items()})
        return BlockResult.voted(self.task.block, changes, heard, histograms, sample)

    def state(self) -> Arrays:
        """Return all that was counted as arrays."""
        return gathered(self._parts())

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`."""
        scattered(arrays, self._parts())

    def _votes(self, answer: Mapping[str, BitMask]) -> dict[str, BitMask]:
        """Return the masks that vote: of experts none that prunes nothing."""
        routed = self.task.model.routed(self.task.block)
        return {
            name: mask for name, mask in answer.items() if not (name in routed and abstains(mask))
        }

    def _parts(self) -> dict[str, Keepable]:
        return {
            **{f"votes/{name}": counter for name, counter in self._counters.items()},
            **{f"norms/{linears[0]}": decoder for linears, decoder in self._decoders.items()},
            "sample": self._sampler,
        }

    def _decode(self, masks: Mapping[str, BitMask], weight: int) -> float:
        """Fit a client's input norms to its masks and add them; return the worst violation."""

        def fit(linears: tuple[str, ...]) -> float:
            return max(self._decoders[linears].add([masks[name] for name in linears], weight))

        told = [linears for linears in self._decoders if linears[0] in masks]
        # The loops leave the interpreter's lock, so inputs are fitted side by side.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return max(threads.map(fit, told), default=0.0)

    def _by_magnitude(self, name: str) -> LinearUpdate:
        spec = self.exchange.result_spec(self.task.block, self.task.model.num_blocks)
        mask = MagnitudePruner().prune(self.weight(name), None, spec.of(name))
        scaling = self.exchange.config.strategy.scaling
        keeps = np.ones(mask.survivors, dtype=np.uint8) if scaling else None
        return LinearUpdate(mask, keeps, 1)

    def _magnitudes(self, name: str) -> NDArray[np.float32]:
        return self.task.model.magnitude(self.task.block, name).reshape(self.shapes[name])

    def _decoded(self) -> dict[str, BitMask]:
        """Prune the block on the norms that its masks told; empty without `strategy.decode`."""
        masks: dict[str, BitMask] = {}
        for linears, decoder in self._decoders.items():
            if not decoder.clients:
                continue
            statistics = ColumnStatistics(torch.from_numpy(decoder.pooled()), 1)
            for name in linears:
                spec = self._spec.of(name)
                masks[name] = WandaPruner().prune(self.weight(name), statistics, spec)
        self._decoders = {}
        return masks

    def _rule(self, name: str) -> Rule:
        config = self.exchange.config
        return Rule(
            group=config.strategy.group,
            ties=config.strategy.ties,
            majority_floor=config.strategy.majority_floor,
            seed=derive_seed(config.seed, "ties", self.task.block, name),
        )


def _voters(votes: VoteCounter) -> tuple[int, float]:
    return votes.clients, votes.effective_clients


def _keeps(votes: VoteCounter, mask: BitMask) -> Counts:
    """Return for each survivor the weight of the clients that kept it."""
    survives = mask.to_bool().reshape(-1)
    parts = []
    for start in range(0, survives.size, _WEIGHTS):
        stop = min(start + _WEIGHTS, survives.size)
        parts.append(votes.total - votes.counts(start, stop)[survives[start:stop]])
    keeps: Counts = np.concatenate(parts).astype(np.min_scalar_type(votes.total))
    return keeps
