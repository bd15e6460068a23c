"""FedSpaLLM: clients send the weights that survive, the server averages what was kept.

Bai et al., "FedSpaLLM" (arXiv 2410.14852): the mean over the clients that kept a weight (Eq. 5),
then the most pruned weights go until the global sparsity is reached (Eqs. 6 and 7); clients prune
as many blocks as their resources allow. The paper leaves open how blocks are drawn; here every
block is sure to be pruned by `strategy.coverage` clients.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

from flwr.common.logger import log
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.methods.agreement import MaskSampler
from fedprune.methods.l0 import WeightSums, expand
from fedprune.methods.state import Arrays, Keepable, gathered, scattered
from fedprune.methods.vote_selection import Rule
from fedprune.pruning.groups import MaskSpec, block_specs, check_mask, result_spec
from fedprune.pruning.registry import make_pruner
from fedprune.records import Order, PruneReply
from fedprune.seeds import derive_seed
from fedprune.wire.changes import Change, SparseWeight, decode_update, encode_update, mask_of
from strategies.cohort import Client
from strategies.course import FederatedPruning
from strategies.sampling import Sampling, sample_blocks
from strategies.state import BlockResult

_Sums = dict[str, WeightSums]


class FedSpaLLM(FederatedPruning):
    """l0-norm aggregation, mask expansion and layer sampling (arXiv 2410.14852)."""

    _sampling: Sampling
    _total: int
    _sums: dict[int, _Sums]
    _samplers: dict[int, MaskSampler]
    _specs: dict[int, MaskSpec]
    _starts: dict[int, bytes]

    def block_bytes(self, block: int) -> int:
        """Return the most bytes that a block's masks and values can take."""
        return self.plan.weight_bytes(block)

    def open_round(self, number: int, clients: Sequence[Client]) -> None:
        """Draw the blocks of every client."""
        self._sampling = sample_blocks(clients, self.config, self.plan, number)
        self._total = sum(map(self._weight, clients))
        drawn = self._sampling.figures(clients)
        log(
            INFO,
            "round %d: a client prunes %.0f%% of the blocks, every block is pruned by %d or more",
            number,
            100 * self._sampling.share,
            self._sampling.least_reporters,
        )
        # A run that goes on in the middle of a round opens it again.
        self.state.figures.setdefault("layer_sampling", [])[number - 1 :] = [drawn]

    def assigned(self, client: Client) -> Iterable[int]:
        """Return the blocks that a client prunes in this round."""
        return self._sampling.blocks[client.node_id]

    def bundle(self, order: Order) -> dict[str, bytes]:
        """Return what earlier rounds made of the blocks to prune."""
        if self.iterative:
            return super().bundle(order)
        return {
            f"start-{block:05d}": self._starts[block]
            for block in order.blocks
            if block in self._starts
        }

    def open_chunk(self, blocks: range) -> None:
        """Start the sums of a chunk's weights and encode what clients start from, once for all."""
        self._specs = block_specs(self.config, blocks, len(self.plan.shapes))
        recalled = {block: self.before(block) for block in blocks}
        self._starts = {
            block: encode_update(changes) for block, changes in recalled.items() if changes
        }
        self._samplers = {b: self.plan.mask_sampler(b, self.config.seed) for b in blocks}
        self._sums = {
            block: {
                name: WeightSums(self.plan.weight(block, name), self._total)
                for name in self.plan.shapes[block]
            }
            for block in blocks
        }

    def fold(self, reply: PruneReply, client: Client) -> None:
        """Add one client's weights: all of them, or none if one is wrong."""
        decoded: dict[int, dict[str, SparseWeight]] = {}
        for block, data in reply.blocks.items():
            decoded[block] = {}
            for name, change in decode_update(data, self.plan.shapes[block]).items():
                decoded[block][name] = self._checked(change, block, name)
                check_mask(decoded[block][name].mask, self._specs[block], name)
        for block, weights in decoded.items():
            for name, weight in weights.items():
                self._sums[block][name].add(weight, self._weight(client))
            self._samplers[block].add(client.name, {n: w.mask for n, w in weights.items()})

    def close_chunk(self) -> Iterator[BlockResult]:
        """Average the chunk's blocks one by one and forget their sums."""
        for block in list(self._sums):
            sums = self._sums.pop(block)
            if next(iter(sums.values())).votes.clients:
                yield self._average(block, sums)
            else:
                log(WARNING, "block %d: no client reported it; it stays as it was", block)
                yield BlockResult(block, self.before(block), 0, 0.0)

    def votes(self) -> Arrays:
        """Return the sums of the open chunk's weights."""
        return gathered(self._parts())

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on with the sums of an open chunk."""
        scattered(arrays, self._parts())

    def _parts(self) -> dict[str, Keepable]:
        sums = {f"sums/{b}/{n}": one for b, named in self._sums.items() for n, one in named.items()}
        return {**sums, **{f"sample/{block}": one for block, one in self._samplers.items()}}

    def _average(self, block: int, sums: _Sums) -> BlockResult:
        strategy, pattern = self.config.strategy, self.config.pruner.pattern
        spec = result_spec(self.config, block, len(self.plan.shapes))
        # In a first round a pruner that changes no weights leaves the public ones: masks say all.
        same = strategy.average == "l0" and not make_pruner(self.config.pruner).updates
        untouched = same and self.state.round == 1
        changes: dict[str, Change] = {}
        for name, found in sums.items():
            mean = found.mean("l0" if strategy.average == "l0" else "fedavg")
            seed = derive_seed(self.config.seed, "ties", block, name)
            rule = Rule(ties=strategy.ties, seed=seed, rounding=spec.rounding)
            mask = expand(found, mean, spec.sparsity, pattern, rule, strategy.expansion)
            dtype = self.plan.weight(block, name).dtype
            changes[name] = mask if untouched else SparseWeight.from_dense(mean.to(dtype), mask)
        votes = {name: found.votes for name, found in sums.items()}
        first = next(iter(votes.values()))
        histograms = {name: counter.histogram() for name, counter in votes.items()}
        sample = self._samplers.pop(block).close({n: mask_of(c) for n, c in changes.items()})
        return BlockResult(
            block, changes, first.clients, first.effective_clients, histograms, sample
        )

    def _checked(self, change: Change, block: int, name: str) -> SparseWeight:
        dtype = self.plan.weight(block, name).dtype
        if not isinstance(change, SparseWeight) or change.values.dtype != dtype:
            raise WireError(f"linear '{name}': expected surviving weights of {dtype}.")
        try:
            self._sums[block][name].check(change)
        except WireError as error:
            raise WireError(f"block {block}, linear '{name}': {error}") from None
        return change

    def _weight(self, client: Client) -> int:
        return self.cohort.weights[client.node_id] * self._sampling.weights[client.node_id]
