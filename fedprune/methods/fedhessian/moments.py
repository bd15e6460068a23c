"""The reconstruction of one block on the sums of its inputs' second moments."""

from collections.abc import Sequence

from fedprune.methods.exchange import BlockAggregator, BlockExchange, BlockResult, BlockTask
from fedprune.methods.moment_sums import MomentSums
from fedprune.methods.moments import InputPlan
from fedprune.pruning.registry import make_solver, towards
from fedprune.wire.moments import InputMoments


class MomentAggregator(MomentSums[BlockResult], BlockAggregator[list[InputMoments]]):
    """Adds up what clients know of each input's products and reconstructs the block on the sums.

    Parameters
    ----------
    exchange : BlockExchange
        Its configuration is followed.
    task : BlockTask
        The block.
    plans : Sequence[InputPlan]
        How the moments of each input travel.
    """

    def __init__(
        self, exchange: BlockExchange, task: BlockTask, plans: Sequence[InputPlan]
    ) -> None:
        BlockAggregator.__init__(self, exchange, task)
        MomentSums.__init__(self, task, exchange.config.strategy.pooling, plans)

    def close(self) -> BlockResult:
        """Reconstruct the block on the pooled moments."""
        # An input of which only sums are known is pruned on these.
        config = self.exchange.config
        pruner = towards(make_solver(config.pruner), config)
        return self.pruned_on(self.results(), pruner, self.clients, self.tokens())
