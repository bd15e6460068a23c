"""FedHessian: clients send second moments, the server reconstructs as if it held all texts.

The Hessian of a linear's output error is the sum over tokens of x x^T, and so over clients: one
SparseGPT, ALPS or SparseSwaps at the server takes the place of many at the clients and a mean of
what they made. Moments travel whole, or as sketches of a few columns each, whatever fits
`strategy.budget_mb`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from logging import getLogger
from math import ceil, floor

from fedprune.config import RunConfig, replace
from fedprune.config.schema import strategy_for
from fedprune.errors import ConfigError
from fedprune.methods.exchange import (
    Answer,
    BlockAggregator,
    BlockExchange,
    BlockPlace,
    BlockResult,
    BlockTask,
)
from fedprune.methods.inputs import Linears
from fedprune.methods.moments import (
    InputPlan,
    MomentPool,
    MomentSums,
    exact_columns,
    input_moments,
    plan_inputs,
)
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import Assignment, Method, Participant, Words
from fedprune.methods.sums import weighed_sums
from fedprune.methods.worst import Form, KeepsAnswers, check_room
from fedprune.pruning.blocks import BlockWalk, prune_on, read_linears
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.registry import make_pruner, make_solver, towards
from fedprune.pruning.statistics import Statistic
from fedprune.pruning.structured import check_units, unit_pruner
from fedprune.results.text import size_text
from fedprune.wire.changes import Change
from fedprune.wire.moments import InputMoments, decode_moments, encode_moments

Size = Callable[[RunConfig], int]
"""Configuration -> most bytes of a client's answers; ConfigError where bits pay for no diagonal."""

# What is tried from `strategy.moments` on, best first: whole moments are exact, a sketch is not.
_WHOLE = {"float32": ("float32", "float16"), "float16": ("float16",)}
_STEPS = 10_000  # of a bit: configurations are read by people
_MOST_BITS = 32

_log = getLogger("flwr")


def fit_budget(config: RunConfig, size: Size) -> RunConfig:
    """Return a configuration whose answers keep within `strategy.budget_mb`, by ``size`` in bytes.

    In place of the budget it has `strategy.moments`, whole where they fit, else sketches of as many
    `strategy.bits_per_weight` as the budget pays for, the same for every block. Raises ConfigError
    if it does not pay for the diagonals; says the least that does.
    """
    strategy = config.strategy
    budget = floor(strategy.budget_mb * 1e6)
    for moments in _WHOLE.get(strategy.moments, ()):
        found = _sized(config, moments, None)
        if size(found) <= budget:
            return _told(config, found, size)
    if strategy.target == "dense":  # of which a sketch leaves out what counts
        needed = size(_sized(config, "float16", None))
        raise ConfigError(
            f"`strategy.budget_mb` must be at least {_megabytes(needed):g} with "
            f"strategy.target=dense, which takes whole moments, got {strategy.budget_mb:g}. Raise "
            "it, or set strategy.target=pruned."
        )
    # Under masks only what is linear adds up.
    adds_up = strategy.moments == "nystrom" or config.privacy.secure
    sketch = "nystrom" if adds_up else "eigen"
    steps = range(1, _MOST_BITS * _STEPS + 1)
    least = 1 + bisect_left(steps[:-1], True, key=lambda n: _pays(config, sketch, n, size))
    needed = size(_sized(config, sketch, least))
    if needed > budget:
        raise ConfigError(
            f"`strategy.budget_mb` must be at least {_megabytes(needed):g} to pay for the "
            f"diagonals of the second moments of this model, got {strategy.budget_mb:g}. Raise it, "
            f"or set strategy={strategy_for('wanda')}, which sends column sums alone: for "
            "pruner=wanda, or for a solver that takes the rest from public text."
        )
    least += bisect_left(
        steps[least:], True, key=lambda n: size(_sized(config, sketch, n)) > budget
    )
    return _told(config, _sized(config, sketch, least), size)


def _pays(config: RunConfig, sketch: str, steps: int, size: Size) -> bool:
    """Whether so many steps of a bit a weight pay for every block's diagonals."""
    try:
        return size(_sized(config, sketch, steps)) > 0
    except ConfigError:
        return False


def _megabytes(size: int) -> float:
    """Return bytes as megabytes, rounded up to a hundredth."""
    return ceil(size / 1e4) / 100


def _sized(config: RunConfig, moments: str, steps: int | None) -> RunConfig:
    bits = None if steps is None else steps / _STEPS
    strategy = replace(config.strategy, moments=moments, bits_per_weight=bits, budget_mb=None)
    return replace(config, strategy=strategy)


def _told(config: RunConfig, found: RunConfig, size: Size) -> RunConfig:
    bits = found.strategy.bits_per_weight
    _log.info(
        "strategy.budget_mb=%g: strategy.moments=%s%s, at most %.2f MB a client",
        config.strategy.budget_mb,
        found.strategy.moments,
        "" if bits is None else f" strategy.bits_per_weight={bits:g}",
        size(found) / 1e6,
    )
    return found


class MomentAggregator(MomentSums[BlockResult], BlockAggregator[dict[Linears, InputMoments]]):
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
        self.keep(Form(encode_moments, decode_moments, self._weighed))

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


class MomentExchange(BlockExchange):
    """Ask every client for the second moments of what enters a block's linears."""

    payload = "moments"
    shares_inputs = True

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.carries_dense = config.strategy.target == "dense"

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
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
        return Assignment(found.blocks, found.weights, check_room(largest, len(clients)))

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
