"""The running averages of one block's survivors: checked weights in, the global block out."""

from collections.abc import Mapping, Sequence
from logging import WARNING, getLogger
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError
from fedprune.methods.abstention import abstains
from fedprune.methods.agreement import MaskSampler
from fedprune.methods.exchange import (
    BlockAggregator,
    BlockExchange,
    BlockResult,
    BlockTask,
    Contributor,
)
from fedprune.methods.l0 import WeightSums, expand
from fedprune.methods.state import Arrays, gathered, scattered
from fedprune.methods.vote_selection import Rule
from fedprune.methods.votes import checked_votes
from fedprune.methods.word_sums import Layout, Words, prefixed
from fedprune.pruning.groups import MaskSpec, block_spec, check_mask
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.wanda import MagnitudePruner
from fedprune.seeds import derive_seed
from fedprune.wire.changes import Change, SparseWeight, decode_update, mask_of
from fedprune.wire.masks import BitMask

_log = getLogger("flwr")

# How far survivors may move, in norms of the public weights that were pruned. SparseGPT, ALPS and
# SparseSwaps on trained models and few texts stay below 1.8 in a matrix and 2.6 in a row.
_MATRIX = 4.0
_ROW = 12.0
_SLACK = 0.01  # of the public norm: what rounding moves where little is pruned
_CHUNK = 1 << 20  # weights looked at at a time


class SurvivorAggregator(BlockAggregator[dict[str, SparseWeight]]):
    """Sums of what clients kept of one block, and votes."""

    sums_integers = True

    def __init__(self, exchange: BlockExchange, task: BlockTask) -> None:
        super().__init__(exchange, task)
        config, block, model = exchange.config, task.block, task.model
        self._spec = block_spec(config, block, model.num_blocks)
        self._moves = make_pruner(config.pruner).updates or task.round > 1
        self._sampler = MaskSampler.of_block(model, block, config.seed)
        self._sums = {
            name: WeightSums(self.weight(name), task.total_weight) for name in self.shapes
        }

    def check(self, payload: bytes, client: Contributor) -> dict[str, SparseWeight]:
        """Decode a client's survivors, which must be of the model's type and range.

        A mask alone that prunes nothing of an expert is none: the client has not seen it.
        """
        routed = self.task.model.routed(self.task.block)
        found = {
            name: self._checked(change, name)
            for name, change in decode_update(payload, self.shapes).items()
            if not (name in routed and isinstance(change, BitMask) and abstains(change))
        }
        for name, weight in found.items():
            check_mask(weight.mask, self._spec.of(name), name)
        return found

    def add(self, answer: dict[str, SparseWeight], client: Contributor) -> None:
        """Add one client's survivors."""
        for name, weight in answer.items():
            self._sums[name].add(weight, client.weight)
        masks = {name: BitMask.from_bool(np.ones(s, np.bool_)) for name, s in self.shapes.items()}
        masks |= {name: weight.mask for name, weight in answer.items()}
        self._sampler.add(client.name, masks)

    def layout(self, clients: int) -> Layout:
        """Return the words of a client's survivors of each linear."""
        return prefixed({n: one.layout(clients, self._moves) for n, one in self._sums.items()})

    def words(self, answer: dict[str, SparseWeight], client: Contributor, clients: int) -> Words:
        """Return one client's checked survivors as words."""
        return prefixed(
            {
                name: one.words(answer.get(name), clients, self._moves)
                for name, one in self._sums.items()
            }
        )

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Take the sums of all clients; each group has as many votes as they have survivors."""
        routed = self.task.model.routed(self.task.block)
        parts = checked_votes(total, len(clients), self._spec, self.shapes, routed)
        for name, part in parts.items():
            self._sums[name].add_total(part)

    def close(self) -> BlockResult:
        """Average the block; one that nobody reported stays as the round before left it."""
        config, block = self.exchange.config, self.task.block
        votes = {name: found.votes for name, found in self._sums.items()}
        heard = {name: (one.clients, one.effective_clients) for name, one in votes.items()}
        if not any(clients for clients, _ in heard.values()):
            _log.log(WARNING, "block %d: no client reported it; it stays as it was", block)
            return BlockResult(block, self.task.before, 0, 0.0)
        specs = self.exchange.result_spec(block, self.task.model.num_blocks)
        strategy, pattern = config.strategy, config.pruner.pattern
        # In a first round a pruner that changes no weights leaves the public ones: masks say all.
        same = strategy.average == "l0" and not make_pruner(config.pruner).updates
        untouched = same and self.task.round == 1
        changes: dict[str, Change] = {}
        for name in list(self._sums):
            found, spec = self._sums.pop(name), specs.of(name)
            if not heard[name][0]:  # an expert that nobody's tokens reached
                changes[name] = self._by_magnitude(name, spec, untouched)
                continue
            mean = found.mean("l0" if strategy.average == "l0" else "fedavg")
            seed = derive_seed(config.seed, "ties", block, name)
            rule = Rule(ties=strategy.ties, seed=seed, rounding=spec.rounding)
            mask = expand(found, mean, spec.sparsity, pattern, rule, strategy.expansion)
            dtype = self.weight(name).dtype
            changes[name] = mask if untouched else SparseWeight.from_dense(mean.to(dtype), mask)
        histograms = {name: one.histogram() for name, one in votes.items() if one.clients}
        sample = self._sampler.close({name: mask_of(change) for name, change in changes.items()})
        return BlockResult.voted(block, changes, heard, histograms, sample)

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        return gathered({**self._sums, "sample": self._sampler})

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`."""
        scattered(arrays, {**self._sums, "sample": self._sampler})

    def _by_magnitude(self, name: str, spec: MaskSpec, untouched: bool) -> Change:
        """Prune a weight that nobody averaged: as the round before left it, or the public one."""
        before = self.task.before.get(name)
        if before is not None:
            return before
        weight = self.weight(name)
        mask = MagnitudePruner().prune(weight, None, spec)
        return mask if untouched else SparseWeight.from_dense(weight, mask)

    def _checked(self, change: Change, name: str) -> SparseWeight:
        dtype = self.weight(name).dtype
        if not isinstance(change, SparseWeight) or change.values.dtype != dtype:
            raise WireError(f"linear '{name}': expected surviving weights of {dtype}.")
        try:
            self._sums[name].check(change)
            check_survivors(change, self.weight(name), self.task.round if self._moves else 0)
        except WireError as error:
            raise WireError(f"linear '{name}': {error}") from None
        return change


def check_survivors(change: SparseWeight, public: Tensor, rounds: int) -> None:
    """Refuse survivors that are further from the public weights than a solver moves them.

    What a solver changes makes up for what it has pruned, so the norm of the change is bounded by
    that of the pruned weights, in the whole matrix and in every row. Nothing but this client's
    answer is looked at: who answers first, or goes on after a kill, does not matter.

    `change`: a client's survivors, shape (d_out, d_in). `public`: the public weight, of the same
    shape. `rounds`: rounds in which survivors have moved; 0 where the pruner changes none. Raises
    WireError if they have moved too far.
    """
    survivors, kept = change.dense(), torch.from_numpy(change.mask.to_bool())
    rows = max(1, _CHUNK // public.shape[1])
    moved, lost, norms = [], [], []
    for start in range(0, len(public), rows):
        place = slice(start, start + rows)
        own, weight, keep = survivors[place].float(), public[place].float(), kept[place]
        moved.append(_squares((own - weight).masked_fill(~keep, 0.0)))
        lost.append(_squares(weight.masked_fill(keep, 0.0)))
        norms.append(_squares(weight))
    squares = [np.concatenate(parts) for parts in (moved, lost, norms)]
    if not rounds:
        if squares[0].any():
            raise WireError("its pruner changes no weights, and its survivors are not the public.")
        return
    for what, most, parts in (
        ("its survivors differ", _MATRIX, [part.sum() for part in squares]),
        ("a row of its survivors differs", _ROW, squares),
    ):
        change_by, pruned, whole = (np.sqrt(part) for part in parts)
        far = change_by > rounds * most * pruned + _SLACK * whole
        if far.any():
            worst = np.max(np.where(far, change_by / np.maximum(pruned + _SLACK * whole, 1e-30), 0))
            raise WireError(
                f"{what} from the public weights by {worst:.3g} times the norm of what was "
                f"pruned; a solver stays below {rounds * most:g}."
            )


def _squares(rows: Tensor) -> NDArray[np.float64]:
    """Return the sum of squares of each row."""
    found: NDArray[np.float64] = rows.double().square_().sum(1).numpy()
    return found
