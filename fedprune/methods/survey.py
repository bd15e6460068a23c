"""A first pass over the dense model: what enters every linear, for the allocation of zeros.

OWL (Yin et al., arXiv 2310.05175): blocks whose scores have more outliers stay denser.
"""

from fedprune.methods.exchange import Answer, BlockExchange, BlockTask
from fedprune.methods.inputs import ColumnAggregator, column_bytes, encode_statistics
from fedprune.methods.public_model import PublicModel
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.owl import outlier_share


class Survey(BlockExchange):
    """Ask for the sums of squared inputs of the dense model."""

    name = "survey"
    payload = "sums"
    prunes = False
    shares_inputs = True

    def answer(self, walk: BlockWalk, spec: MaskSpec, local_prefix: bool) -> Answer:
        """Return this client's sums of the block where a walk stands."""
        return Answer(encode_statistics(walk.collect("columns")))

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """Return the most bytes that a client's sums of a block can take."""
        return column_bytes(model.shapes[block])

    def aggregator(self, task: BlockTask) -> "OutlierAggregator":
        """Return empty sums for a block."""
        return OutlierAggregator(task, self)


class OutlierAggregator(ColumnAggregator[float | None]):
    """Closes to the share of a block's weights whose score is an outlier, from 0 to 1."""

    def __init__(self, task: BlockTask, survey: Survey) -> None:
        config = survey.config
        super().__init__(task, config.strategy.pooling)
        self._threshold = config.allocation.threshold

    def close(self) -> float | None:
        """Return the share of outliers; None where nothing is pruned."""
        block, model = self.task.block, self.task.model
        weights = {name: model.weight(block, name) for name in model.shapes[block]}
        return outlier_share(weights, self.statistics(), self._threshold)
