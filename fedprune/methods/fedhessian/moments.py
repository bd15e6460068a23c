"""The reconstruction of one block on the sums of its inputs' second moments."""

from collections.abc import Iterable, Sequence
from itertools import chain

from fedprune.methods.exchange import BlockAggregator, BlockExchange, BlockResult, BlockTask
from fedprune.methods.moment_sums import MomentSums, exact_columns
from fedprune.methods.moments import InputPlan, MomentPool
from fedprune.methods.sums import weighed_sums
from fedprune.methods.worst import Form, KeepsAnswers
from fedprune.pruning.registry import make_solver, towards
from fedprune.pruning.statistics import Statistic
from fedprune.wire.moments import InputMoments, decode_moments, encode_moments


class MomentAggregator(MomentSums[BlockResult], BlockAggregator[list[InputMoments]]):
    """Adds up what clients know of each input's products and reconstructs the block on the sums.

    `plans`: how the moments of each input travel.
    """

    def __init__(
        self, exchange: BlockExchange, task: BlockTask, plans: Sequence[InputPlan]
    ) -> None:
        BlockAggregator.__init__(self, exchange, task)
        strategy = exchange.config.strategy
        pooling = "tokens" if strategy.serves_worst else strategy.pooling
        MomentSums.__init__(self, task, pooling, plans)

    def close(self) -> BlockResult:
        """Reconstruct the block on the pooled moments."""
        # An input of which only sums are known is pruned on these.
        config, task = self.exchange.config, self.task
        pruner = towards(make_solver(config.pruner), config)
        public = task.model.public_moments(task.block) if config.strategy.rest == "public" else {}
        return self.pruned_on(self.results(public), pruner, self.clients, self.tokens())


class WorstMoments(KeepsAnswers[InputMoments], MomentAggregator):
    """Keeps what clients know, and reconstructs the block for the one that is served worst."""

    def __init__(
        self, exchange: BlockExchange, task: BlockTask, plans: Sequence[InputPlan]
    ) -> None:
        MomentAggregator.__init__(self, exchange, task, plans)
        self.keep(self.plans, Form(encode_moments, decode_moments, self._weighed))

    def _weighed(self, weighed: Iterable[tuple[InputMoments, float]]) -> Statistic:
        known = iter(weighed)
        first, factor = next(known)
        plan = self.plans[first.linears]
        if plan.form == "columns":
            rest = chain([(first, factor)], known)
            return weighed_sums((exact_columns(moments), times) for moments, times in rest)
        pool = MomentPool("tokens", plan.seed)
        pool.add(first, factor)
        for moments, times in known:
            pool.add(moments, times)
        return pool.statistic()

    def close(self) -> BlockResult:
        """Reconstruct the block on weighed moments."""
        return self.serve_worst(make_solver(self.exchange.config.pruner))[0]
