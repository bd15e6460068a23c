"""A first pass over the dense model, from which the configuration of the second follows.

Here it is what enters every linear, for the allocation of zeros. OWL (Yin et al., arXiv
2310.05175): blocks whose scores have more outliers stay denser.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from fedprune.config import RunConfig, resolved_allocation
from fedprune.methods.exchange import Answer, BlockExchange, BlockTask
from fedprune.methods.inputs import ColumnAggregator, column_bytes, encode_statistics
from fedprune.methods.public_model import PublicModel
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.owl import outlier_share, owl_sparsities
from fedprune.pruning.statistics import ColumnSquares


class SurveyExchange(BlockExchange):
    """Ask about all blocks of the dense model first, and let the rest of the run follow from it.

    The configuration that follows asks for no survey any more.
    """

    name = "survey"
    prunes = False

    @abstractmethod
    def settle(self, found: Sequence[Any]) -> dict[str, Any]:
        """Return what follows from what the answers about each block came to.

        Parameters
        ----------
        found : Sequence
            Block -> what its aggregator closed to.

        Returns
        -------
        dict
            Plain JSON values, for the results and for :meth:`settled`.
        """

    @abstractmethod
    def settled(self, figures: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration that follows from what :meth:`settle` told, None without it."""


class Survey(SurveyExchange):
    """Ask for the sums of squared inputs of the dense model."""

    payload = "sums"
    shares_inputs = True
    columns = ColumnSquares()

    def settle(self, found: Sequence[float]) -> dict[str, Any]:
        """Return the sparsity of each block that the outliers of all blocks come to."""
        allocation, shares = self.config.allocation, list(found)
        sparsities = owl_sparsities(shares, self.config.sparsity, allocation.spread)
        return {"allocation": {"outlier_shares": shares, "sparsities": sparsities}}

    def settled(self, figures: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration with the sparsity of each block."""
        if "allocation" not in figures:
            return None
        return resolved_allocation(self.config, figures["allocation"]["sparsities"])

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
