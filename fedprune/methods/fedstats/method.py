"""FedStats: clients send sums of squared inputs, the server prunes as if it held all texts.

What Wanda and RIA know of a client's texts is one number a column, and those numbers add up over
clients. They are added without rounding, so with the iterative schedule the masks are those of
pruning all texts in one place, bit for bit, however the texts are spread and whoever answers first.
A solver that wants second moments gets them of the same sums and of public text
(`fedprune.methods.moments`), which is no exact answer, but the same for any clients.
"""

from collections.abc import Iterator

from fedprune.config import RunConfig
from fedprune.config.schema import MomentsPrunerConfig
from fedprune.errors import WireError
from fedprune.methods.exchange import (
    Answer,
    BlockAggregator,
    BlockExchange,
    BlockPlace,
    BlockResult,
    BlockTask,
)
from fedprune.methods.fedstats.config import COHORTS
from fedprune.methods.inputs import ColumnAggregator, Linears, column_bytes, encode_statistics
from fedprune.methods.moments import completed
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import Method, Words
from fedprune.methods.sums import weighed_sums
from fedprune.methods.worst import Form, KeepsAnswers
from fedprune.pruning.blocks import BlockWalk, prune_on
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.registry import make_pruner, make_solver
from fedprune.pruning.statistics import (
    ColumnSquares,
    ColumnStatistics,
    Statistic,
    shared_inputs,
)
from fedprune.pruning.wanda import able_pruner
from fedprune.wire.changes import Change, checksum_of
from fedprune.wire.sums import (
    InputSums,
    PooledSums,
    decode_pooled,
    decode_sums,
    encode_pooled,
    encode_sums,
    is_pooled,
)


def reconstructs(config: RunConfig) -> bool:
    """Return whether the pruner wants more of inputs than clients tell."""
    return isinstance(config.pruner, MomentsPrunerConfig)


class SumsExchange(BlockExchange):
    """Ask every client for the sums of squares of what enters a block's linears."""

    payload = "sums"
    shares_inputs = True
    summed = (ColumnSquares(),)

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.cohorts = COHORTS if str(config.strategy.pooling) == "median" else 1

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        statistics = walk.collect("columns")
        own = {}
        if local_prefix:
            own = prune_on(walk, statistics, make_solver(self.config.pruner), spec)
        return Answer(encode_statistics(statistics), own)

    def read_update(self, place: BlockPlace, data: bytes) -> dict[str, Change]:
        """Decode masks, or pooled sums, from which the server's masks are made again."""
        if not is_pooled(data):
            return super().read_update(place, data)
        pruner = make_pruner(self.config.pruner)
        spec = self.result_spec(place.block, place.num_blocks)
        changes: dict[str, Change] = {}
        for group in decode_pooled(data, place.shapes):
            statistics = ColumnStatistics(group.tensor(), group.tokens)
            for name, checksum in zip(group.linears, group.checksums, strict=True):
                with able_pruner(pruner, statistics, None, f"linear '{name}'") as (able, stats):
                    changes[name] = able.prune(place.weights[name], stats, spec.of(name))
                if checksum_of(changes[name]) != checksum:
                    raise WireError(
                        f"linear '{name}': the server's statistics give another result on this "
                        "node than on the server's device. Set `strategy.downlink=masks`."
                    )
        return changes

    def most_bytes(self, model: PublicModel, block: int) -> int:
        return column_bytes(model.shapes[block])

    def aggregator(self, task: BlockTask) -> "SumsAggregator":
        kind = WorstSums if self.config.strategy.serves_worst else SumsAggregator
        return kind(self, task)


class SumsAggregator(ColumnAggregator[BlockResult], BlockAggregator[dict[Linears, InputSums]]):
    """Adds up what clients know of each input and prunes the block on the sums."""

    def __init__(self, exchange: BlockExchange, task: BlockTask) -> None:
        BlockAggregator.__init__(self, exchange, task)
        ColumnAggregator.__init__(self, task, exchange.config.strategy.pooling)

    def close(self) -> BlockResult:
        """Prune the block on the pooled sums."""
        pruner = make_solver(self.exchange.config.pruner)
        return self.pruned_on(self._known(), pruner, self.clients, self.tokens())

    def _known(self) -> Iterator[tuple[tuple[str, ...], Statistic]]:
        """Yield what is known of each input; where public text does not reach, sums alone."""
        completes = reconstructs(self.exchange.config)
        public = self.task.model.public_moments(self.task.block) if completes else {}
        for linears, sums in shared_inputs(self.statistics()):
            told = public.get(linears[0])
            yield linears, sums if told is None else completed(sums, told)

    def update(self, result: BlockResult) -> bytes:
        """Encode the pooled sums or the masks, whichever are fewer bytes (`strategy.downlink`)."""
        masks, downlink = super().update(result), self.exchange.config.strategy.downlink
        # What a solver makes of the sums and of public text, no client could make again.
        if downlink == "masks" or reconstructs(self.exchange.config):
            return masks
        known, groups = self.statistics(), []
        for linears in self.inputs:
            found = known[linears[0]]
            checksums = tuple(checksum_of(result.changes[name]) for name in linears)
            groups.append(PooledSums(linears, found.sum_squares.numpy(), found.tokens, checksums))
        sums = encode_pooled(groups)
        return min(sums, masks, key=len) if downlink == "auto" else sums


class WorstSums(KeepsAnswers[InputSums], SumsAggregator):
    """Keeps what clients know, and prunes the block for the one that is served worst."""

    def __init__(self, exchange: BlockExchange, task: BlockTask) -> None:
        SumsAggregator.__init__(self, exchange, task)
        self.keep(Form(encode_sums, decode_sums, weighed_sums))
        self._weighed: dict[str, ColumnStatistics] = {}

    def statistics(self) -> dict[str, ColumnStatistics]:
        """Return linear -> the weighed sums that it was pruned on, once it was."""
        return self._weighed

    def close(self) -> BlockResult:
        """Prune the block on weighed sums."""
        result, factors = self.serve_worst(make_pruner(self.exchange.config.pruner))
        for linears, found in factors.items():
            pooled = self.pools[linears].pooled(found)
            if isinstance(pooled, ColumnStatistics):
                self._weighed |= dict.fromkeys(linears, pooled)
        return result


class FedStats(Method):
    """Pruning on summed column statistics, iterative (exact) or one-shot."""

    name = "fedstats"
    words = Words(
        label="FedStats",
        does="clients send column statistics, the server prunes with the sum",
        sends="for each column of a matrix the sum of its squared inputs, and numbers of tokens",
        tells="The sums are exact statistics of each client's texts.",
    )

    with_noise = "pruner=wanda schedule=iterative"

    def exchange(self, config: RunConfig) -> SumsExchange:
        return SumsExchange(config)


METHOD = FedStats()
