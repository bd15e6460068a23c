"""A first pass over the dense model, from which the configuration of the second follows.

Here it is what enters every linear, for the allocation of zeros. OWL (Yin et al., arXiv
2310.05175): blocks whose scores have more outliers stay denser. By sensitivity: linears whose
errors the loss minds more stay denser, by gradients on texts that the public model writes.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from fedprune.config import RunConfig, allocation_of, resolved_allocation, resolved_linears
from fedprune.methods.exchange import Answer, BlockExchange, BlockTask, Contributor
from fedprune.methods.inputs import ColumnAggregator, column_bytes, encode_statistics
from fedprune.methods.public_model import PublicModel
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.owl import outlier_share, owl_sparsities
from fedprune.pruning.sensitivity import Curve, block_curves, sensitivity_sparsities


class SurveyExchange(BlockExchange):
    """Ask about all blocks of the dense model first, and let the rest of the run follow from it.

    The configuration that follows asks for no survey any more.
    """

    name = "survey"
    prunes = False

    @abstractmethod
    def settle(self, found: Sequence[Any]) -> dict[str, Any]:
        """Return what follows from what the answers about each block came to.

        `found`: block -> what its aggregator closed to. Returns plain JSON values, for the results
        and for :meth:`settled`.
        """

    @abstractmethod
    def settled(self, figures: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration that follows from what :meth:`settle` told, None without it."""

    def closed_on(self, walk: BlockWalk, model: PublicModel) -> list[Any]:
        """Return block -> what the answers would come to if one walk's were all there are.

        `walk`: stands at the first block of the dense model; it is over afterwards.
        """
        found, whole = list[Any](), self.config.pruner
        spec = BlockSpec(0.0, whole.pattern, whole.group)
        for block in range(model.num_blocks):
            sums, one = self.aggregator(BlockTask(model, block)), Contributor("")
            sums.add(sums.check(self.answer(walk, spec, False).payload, one), one)
            found.append(sums.close())
            if walk.blocks_left > 1:
                walk.advance({})
        return found

    def foreseen(self, num_blocks: int) -> Iterator[RunConfig]:
        """Yield configurations that together ask for every sum that may follow.

        Keys for sums under masks are made before anybody answers. Sparsities, which follow by
        default, decide about values and not about how many there are.
        """
        yield resolved_allocation(self.config, [self.config.sparsity] * num_blocks)


def survey_for(config: RunConfig) -> "InputSurvey | None":
    """Return the exchange that an allocation needs before blocks are pruned; None for none."""
    kinds = {"owl": OutlierSurvey, "sensitivity": SensitivitySurvey}
    kind = kinds.get(allocation_of(config))
    return None if kind is None else kind(config)


class InputSurvey(SurveyExchange):
    """Ask for the sums of squared inputs of the dense model."""

    payload = "sums"
    shares_inputs = True

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return this client's sums of the block where a walk stands."""
        return Answer(encode_statistics(walk.collect("columns")))

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """Return the most bytes that a client's sums of a block can take."""
        return column_bytes(model.shapes[block])


class OutlierSurvey(InputSurvey):
    """The survey of OWL: a sparsity for each block."""

    def settle(self, found: Sequence[float | None]) -> dict[str, Any]:
        """Return the sparsity of each block that the outliers of all blocks come to."""
        return {"allocation": by_outliers(self.config, found)}

    def settled(self, figures: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration with the sparsity of each block."""
        if "allocation" not in figures:
            return None
        return resolved_allocation(self.config, figures["allocation"]["sparsities"])

    def aggregator(self, task: BlockTask) -> "OutlierAggregator":
        """Return empty sums for a block."""
        return OutlierAggregator(task, self.config)


class SensitivitySurvey(InputSurvey):
    """The survey of the allocation by what the loss says: a sparsity for each linear."""

    def settle(self, found: Sequence[Mapping[str, Curve]]) -> dict[str, Any]:
        """Return the sparsities of all linears that cost least together."""
        return {"allocation": by_sensitivity(self.config, found)}

    def settled(self, figures: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration with the sparsity of each linear."""
        if "allocation" not in figures:
            return None
        return resolved_linears(self.config, figures["allocation"]["sparsities"])

    def aggregator(self, task: BlockTask) -> "CurveAggregator":
        """Return empty sums for a block."""
        return CurveAggregator(task, self.config)


class OutlierAggregator(ColumnAggregator[float | None]):
    """Closes to the share of a block's weights whose score is an outlier, from 0 to 1."""

    def __init__(self, task: BlockTask, config: RunConfig) -> None:
        super().__init__(task, config.strategy.pooling)
        self._threshold = config.allocation.threshold

    def close(self) -> float | None:
        """Return the share of outliers; None where nothing is pruned."""
        block, model = self.task.block, self.task.model
        weights = {name: model.weight(block, name) for name in model.shapes[block]}
        return outlier_share(weights, self.statistics(), self._threshold)


class CurveAggregator(ColumnAggregator[dict[str, Curve]]):
    """Closes to what it costs to prune each of a block's linears."""

    def __init__(self, task: BlockTask, config: RunConfig) -> None:
        super().__init__(task, config.strategy.pooling)
        self._group = config.pruner.group

    def close(self) -> dict[str, Curve]:
        """Return the curves; experts share one for each of their matrices."""
        block, model = self.task.block, self.task.model
        weight, experts = partial(model.weight, block), model.routed(block)
        sensitivities = model.sensitivities()[block]
        return block_curves(weight, self.statistics(), sensitivities, self._group, experts)


def by_outliers(config: RunConfig, shares: Sequence[float | None]) -> dict[str, Any]:
    """Return what results tell of OWL: `outlier_shares` and `sparsities`, by block."""
    sparsities = owl_sparsities(shares, config.sparsity, config.allocation.spread)
    return {"outlier_shares": list(shares), "sparsities": sparsities}


def by_sensitivity(config: RunConfig, curves: Sequence[Mapping[str, Curve]]) -> dict[str, Any]:
    """Return what results tell of it: block -> linear -> `sparsities`."""
    spread = config.allocation.spread
    return {"sparsities": sensitivity_sparsities(curves, config.sparsity, spread)}
