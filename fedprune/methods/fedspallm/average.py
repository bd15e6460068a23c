"""The running averages of one block's survivors: checked weights in, the global block out."""

from collections.abc import Mapping
from logging import WARNING, getLogger
from typing import Any

from numpy.typing import NDArray

from fedprune.errors import WireError
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
from fedprune.pruning.groups import block_specs, check_mask
from fedprune.pruning.registry import make_pruner
from fedprune.seeds import derive_seed
from fedprune.wire.changes import Change, SparseWeight, decode_update, mask_of

_log = getLogger("flwr")


class SurvivorAggregator(BlockAggregator[dict[str, SparseWeight]]):
    """Sums of what clients kept of one block, and votes."""

    def __init__(self, exchange: BlockExchange, task: BlockTask) -> None:
        super().__init__(exchange, task)
        config, block, model = exchange.config, task.block, task.model
        self._spec = block_specs(config, range(block, block + 1), model.num_blocks)[block]
        self._sampler = MaskSampler.of_block(model, block, config.seed)
        self._sums = {
            name: WeightSums(self.weight(name), task.total_weight) for name in self.shapes
        }

    def check(self, payload: bytes, client: Contributor) -> dict[str, SparseWeight]:
        """Decode a client's survivors, which must be of the model's type and range."""
        found = {
            name: self._checked(change, name)
            for name, change in decode_update(payload, self.shapes).items()
        }
        for name, weight in found.items():
            check_mask(weight.mask, self._spec, name)
        return found

    def add(self, answer: dict[str, SparseWeight], client: Contributor) -> None:
        """Add one client's survivors."""
        for name, weight in answer.items():
            self._sums[name].add(weight, client.weight)
        self._sampler.add(client.name, {name: weight.mask for name, weight in answer.items()})

    def close(self) -> BlockResult:
        """Average the block; one that nobody reported stays as the round before left it."""
        config, block = self.exchange.config, self.task.block
        votes = {name: found.votes for name, found in self._sums.items()}
        first = next(iter(votes.values()))
        if not first.clients:
            _log.log(WARNING, "block %d: no client reported it; it stays as it was", block)
            return BlockResult(block, self.task.before, 0, 0.0)
        spec = self.exchange.result_spec(block, self.task.model.num_blocks)
        strategy, pattern = config.strategy, config.pruner.pattern
        # In a first round a pruner that changes no weights leaves the public ones: masks say all.
        same = strategy.average == "l0" and not make_pruner(config.pruner).updates
        untouched = same and self.task.round == 1
        changes: dict[str, Change] = {}
        for name in list(self._sums):
            found = self._sums.pop(name)
            mean = found.mean("l0" if strategy.average == "l0" else "fedavg")
            seed = derive_seed(config.seed, "ties", block, name)
            rule = Rule(ties=strategy.ties, seed=seed, rounding=spec.rounding)
            mask = expand(found, mean, spec.sparsity, pattern, rule, strategy.expansion)
            dtype = self.weight(name).dtype
            changes[name] = mask if untouched else SparseWeight.from_dense(mean.to(dtype), mask)
        histograms = {name: counter.histogram() for name, counter in votes.items()}
        sample = self._sampler.close({name: mask_of(change) for name, change in changes.items()})
        return BlockResult(
            block, changes, first.clients, first.effective_clients, histograms, sample
        )

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        return gathered({**self._sums, "sample": self._sampler})

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`."""
        scattered(arrays, {**self._sums, "sample": self._sampler})

    def _checked(self, change: Change, name: str) -> SparseWeight:
        dtype = self.weight(name).dtype
        if not isinstance(change, SparseWeight) or change.values.dtype != dtype:
            raise WireError(f"linear '{name}': expected surviving weights of {dtype}.")
        try:
            self._sums[name].check(change)
        except WireError as error:
            raise WireError(f"linear '{name}': {error}") from None
        return change
