"""A first pass over the dense model, from which the configuration of the second follows.

Here it is what enters every linear, for the allocation of zeros. OWL (Yin et al., arXiv
2310.05175): blocks whose scores have more outliers stay denser. By sensitivity: linears whose
errors the loss minds more stay denser, by gradients on texts that the public model writes.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from fedprune.pruning.statistics import ColumnStatistics


class SurveyExchange(BlockExchange):
    """Ask about all blocks of the dense model first, and let the rest of the run follow from it.

    The configuration that follows asks for no survey any more.
    """

    name = "survey"
    prunes = False

    @abstractmethod
    def settle(self, found: Sequence[Any]) -> dict[str, Any]:
        """Return what follows from block -> what its aggregator closed to, as plain JSON values."""

    @abstractmethod
    def settled(self, figures: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration that follows from what :meth:`settle` told, None without it."""

    def closed_on(self, walk: BlockWalk, model: PublicModel) -> list[Any]:
        """Return block -> what the answers would come to if one walk's were all there are.

        `walk`: stands at the first block of the dense model; it is over afterwards.
        """
        found, whole = list[Any](), self.config.pruner
        spec = BlockSpec(0.0, whole.pattern, whole.group)
        for block in walk.dense_blocks():
            sums, one = self.aggregator(BlockTask(model, block)), Contributor("")
            sums.add(sums.check(self.answer(walk, spec, False).payload, one), one)
            found.append(sums.close())
        return found

    def foreseen(self, num_blocks: int) -> Iterator[RunConfig]:
        """Yield configurations that together ask for every sum that may follow.

        Keys for sums under masks are made before anybody answers. Sparsities, which follow by
        default, decide about values and not about how many there are.
        """
        yield resolved_allocation(self.config, [self.config.sparsity] * num_blocks)


class ColumnSurvey(SurveyExchange):
    """Ask for the sums of squared inputs of the dense model, from which sparsities follow."""

    payload = "sums"
    shares_inputs = True

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        return Answer(encode_statistics(walk.collect("columns")))

    def most_bytes(self, model: PublicModel, block: int) -> int:
        return column_bytes(model.shapes[block])

    def aggregator(self, task: BlockTask) -> "SurveyAggregator":
        return SurveyAggregator(task, self.config)

    def settle(self, found: Sequence[Any]) -> dict[str, Any]:
        """Return the sparsities that all blocks come to."""
        return {"allocation": ALLOCATIONS[allocation_of(self.config)].told(self.config, found)}

    def settled(self, figures: Mapping[str, Any]) -> RunConfig | None:
        """Return the configuration with these sparsities."""
        told = figures.get("allocation")
        if told is None:
            return None
        return ALLOCATIONS[allocation_of(self.config)].follow(self.config, told["sparsities"])


class SurveyAggregator(ColumnAggregator[Any]):
    """Closes to what the sums tell of a block."""

    def __init__(self, task: BlockTask, config: RunConfig) -> None:
        super().__init__(task, config.strategy.pooling)
        self._config = config

    def close(self) -> Any:
        """Return what the allocation makes of the block."""
        of_block = ALLOCATIONS[allocation_of(self._config)].of_block
        return of_block(self._config, self.task.model, self.task.block, self.statistics())


def survey_for(config: RunConfig) -> ColumnSurvey | None:
    """Return the exchange that an allocation needs before blocks are pruned; None for none."""
    return ColumnSurvey(config) if allocation_of(config) in ALLOCATIONS else None


Columns = Mapping[str, ColumnStatistics]


@dataclass(frozen=True)
class Allocation:
    """How sparsities follow from the sums of squared inputs of a dense model."""

    # configuration, model, block, name of the linear -> its sums -> what these tell of the block
    of_block: Callable[[RunConfig, PublicModel, int, Columns], Any]
    # that of all blocks -> what results tell: plain JSON values, `sparsities` among them
    told: Callable[[RunConfig, Sequence[Any]], dict[str, Any]]
    follow: Callable[[RunConfig, Any], RunConfig]  # the configuration with `sparsities`


def _outliers(config: RunConfig, model: PublicModel, block: int, columns: Columns) -> float | None:
    """Return the share of a block's weights whose score is an outlier; None of no weights."""
    weights = {name: model.weight(block, name) for name in model.shapes[block]}
    return outlier_share(weights, columns, config.allocation.threshold)


def _by_outliers(config: RunConfig, shares: Sequence[float | None]) -> dict[str, Any]:
    sparsities = owl_sparsities(shares, config.sparsity, config.allocation.spread)
    return {"outlier_shares": list(shares), "sparsities": sparsities}


def _curves(
    config: RunConfig, model: PublicModel, block: int, columns: Columns
) -> dict[str, Curve]:
    """Return what it costs to prune each linear; experts share one for each of their matrices."""
    sensitivities, experts = model.sensitivities()[block], model.routed(block)
    weight = partial(model.weight, block)
    return block_curves(weight, columns, sensitivities, config.pruner.group, experts)


def _by_sensitivity(config: RunConfig, curves: Sequence[Mapping[str, Curve]]) -> dict[str, Any]:
    spread = config.allocation.spread
    return {"sparsities": sensitivity_sparsities(curves, config.sparsity, spread)}


ALLOCATIONS: Mapping[str, Allocation] = {
    "owl": Allocation(_outliers, _by_outliers, resolved_allocation),
    "sensitivity": Allocation(_curves, _by_sensitivity, resolved_linears),
}
"""`allocation.name` -> how its sparsities follow: of blocks, or of linears."""
