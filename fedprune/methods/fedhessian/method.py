"""FedHessian: clients send second moments, the server reconstructs as if it held all texts.

The Hessian of a linear's output error is the sum over tokens of x x^T, and so over clients: one
SparseGPT, ALPS or SparseSwaps at the server takes the place of many at the clients and a mean of
what they made. Moments travel whole, or as sketches of a few columns each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedprune.config import RunConfig
from fedprune.methods.exchange import Answer, BlockExchange, BlockPlace, BlockTask
from fedprune.methods.fedhessian.budget import fit_budget
from fedprune.methods.fedhessian.moments import MomentAggregator, WorstMoments
from fedprune.methods.moments import InputPlan, input_moments, plan_inputs
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import Assignment, Method, Participant, Words
from fedprune.methods.worst import check_room
from fedprune.pruning.blocks import BlockWalk, prune_on, read_linears
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.registry import make_pruner, make_solver
from fedprune.pruning.structured import check_units, unit_pruner
from fedprune.results.text import size_text
from fedprune.wire.changes import Change
from fedprune.wire.moments import encode_moments


class MomentExchange(BlockExchange):
    """Ask every client for the second moments of what enters a block's linears."""

    payload = "moments"
    shares_inputs = True

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.carries_dense = config.strategy.target == "dense"

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return this client's moments of the block where a walk stands."""
        needed = read_linears(walk.model, make_pruner(self.config.pruner))
        kind = "paired_moments" if self.carries_dense and walk.position else "moments"
        statistics = walk.collect(kind, self.config.strategy.max_width, needed)
        place = BlockPlace.of(walk)
        own = {}
        if local_prefix:
            pruner = make_solver(self.config.pruner)
            own = prune_on(walk, statistics, pruner, spec)
        linears = walk.model.layout.linears(place.block)
        routed = frozenset(name for name, linear in linears.items() if linear.expert)
        groups = input_moments(self.config, place.block, statistics, place.shapes, routed)
        return Answer(encode_moments(groups), own)

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """Return the most bytes that a client's moments of a block can take."""
        return sum(plan.most_bytes for plan in self.plans(model, block))

    def plans(self, model: PublicModel, block: int) -> list[InputPlan]:
        """Return how the moments of each of a block's inputs travel."""
        inputs = model.inputs[block] if model.units is None else ((model.units.linear,),)
        return plan_inputs(self.config, block, inputs, model.shapes[block], model.routed(block))

    def check_result(self, changes: Mapping[str, Change], block: int, num_blocks: int) -> None:
        """Raise ``WireError`` unless changes are what the server was to make of a block."""
        if unit_pruner(make_pruner(self.config.pruner)) is None:
            super().check_result(changes, block, num_blocks)
        else:
            check_units(changes)

    def aggregator(self, task: BlockTask) -> MomentAggregator:
        """Return empty sums for a block."""
        kind = WorstMoments if self.config.strategy.serves_worst else MomentAggregator
        return kind(self, task, self.plans(task.model, task.block))

    def announcement(self, model: PublicModel) -> str:
        """Say what it costs."""
        total = self.total_bytes(model)
        masks = sum(map(model.mask_bytes, range(model.num_blocks)))
        crossed = " and cross moments with the dense model's inputs" if self.carries_dense else ""
        return (
            f"every client will send about {size_text(total)} of second moments{crossed} "
            f"({self.config.strategy.moments}; its masks would be {size_text(masks)})"
        )


class FedHessian(Method):
    """Reconstruction on summed second moments, iterative or one-shot."""

    name = "fedhessian"
    words = Words(
        label="FedHessian",
        does="clients send second moments, the server prunes with the sum",
        sends="second moments of the matrices' inputs or sketches of them, and numbers of tokens",
        tells="Second moments tell more than sums: they are to be treated like gradients.",
    )

    def exchange(self, config: RunConfig) -> MomentExchange:
        """Return the exchange that is held about every block."""
        return MomentExchange(config)

    def assign(
        self, config: RunConfig, model: PublicModel, clients: Sequence[Participant], number: int
    ) -> Assignment:
        """Say, before anybody is asked, what it takes to keep what every client sends."""
        found = super().assign(config, model, clients, number)
        if not config.strategy.serves_worst:
            return found
        exchange = self.exchange(config)
        largest = max(exchange.most_bytes(model, block) for block in range(model.num_blocks))
        return replace(found, summary=check_room(largest, len(clients)))

    def settled(self, config: RunConfig, model: PublicModel) -> RunConfig:
        """Return what fits `strategy.budget_mb`, where there is one; a survey is paid for too."""
        if config.strategy.budget_mb is None:
            return config
        before = 0 if self.survey(config) is None else _survey_bytes(model)
        return fit_budget(config, lambda one: before + self.exchange(one).total_bytes(model))


_COLUMN_BYTES = 5  # of an exact sum as sums of squares are; what one can take at most is far more
_INPUT_BYTES = 512


def _survey_bytes(model: PublicModel) -> int:
    """Return about what a client's column sums of all blocks take."""
    return sum(
        _INPUT_BYTES + _COLUMN_BYTES * shapes[linears[0]][1]
        for inputs, shapes in zip(model.inputs, model.shapes, strict=True)
        for linears in inputs
    )


METHOD = FedHessian()
