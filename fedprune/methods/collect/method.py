"""Collect: one pass over the dense model, whose sums serve every solver afterwards.

What compressors want to know of private text is a sum over tokens, and on the dense model it does
not depend on what is made of it. A federation that sends these sums once can be solved from for
every sparsity, pattern, allocation and solver, at no further cost to its clients.
"""

from functools import cache, lru_cache, partial

from fedprune.config import RunConfig, allocation_of
from fedprune.errors import ModelError
from fedprune.methods.collection import Collection
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import Method, Solution, Words
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.methods.survey import ALLOCATIONS
from fedprune.models.changes import Recalled
from fedprune.models.loading import LoadedModel
from fedprune.pruning.compaction import plan_narrowing
from fedprune.pruning.groups import block_spec, check_allocation
from fedprune.pruning.output_gradients import OutputMoments, mean_squares
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.registry import make_solver
from fedprune.pruning.statistics import NOTHING, ColumnStatistics, Statistic
from fedprune.pruning.structured import unit_pruner
from fedprune.pruning.units import find_units
from fedprune.pruning.wanda import able_pruner
from fedprune.wire.changes import Change


def prune_from(config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder) -> Solution:
    """Prune every linear of a model with `pruner` on collected statistics, block by block.

    The same as a one-shot run on the dense model (`schedule.prefix=dense`) with the clients that
    took part, to the last bit. Raises ConfigError if what is needed was not collected.
    """
    pruner = make_solver(config.pruner)
    if pruner.needs != NOTHING:
        statistics.require(pruner.needs, f"`pruner.name` '{pruner.name}'")
    figures: dict[str, object] = {}
    blocks, chosen = range(statistics.num_blocks), allocation_of(config)
    if chosen in ALLOCATIONS:
        statistics.require("columns", f"allocation={chosen}")
        way, minded = ALLOCATIONS[chosen], cache(partial(mean_squares, config, loaded))
        model = PublicModel.of(loaded, sensitivities=minded)
        known = [way.of_block(config, model, b, _columns(statistics, b)) for b in blocks]
        figures["allocation"] = told = way.told(config, known)
        config = way.follow(config, told["sparsities"])
    check_allocation(config, loaded.layout.shapes())
    # What writes a narrower model asks for a block's changes several times in a row.
    outputs = OutputMoments(config, loaded)
    solve = lru_cache(maxsize=1)(partial(_block, config, loaded, statistics, pruner, outputs))
    changes = Recalled(blocks, solve)
    narrowing = plan_narrowing(loaded, pruner, config.sparsity)
    if narrowing is None:
        return Solution(changes, figures=figures)
    return Solution(changes, narrowing.reshape(changes), figures, narrowing.summary)


def _block(
    config: RunConfig,
    loaded: LoadedModel,
    statistics: StatisticsFolder,
    pruner: Pruner,
    outputs: OutputMoments,
    block: int,
) -> dict[str, Change]:
    spec = block_spec(config, block, statistics.num_blocks)
    known: dict[str, Statistic] = {}
    if pruner.needs != NOTHING:
        known = statistics.linears(block, pruner.needs)
    structured = unit_pruner(pruner)
    if structured is not None:
        every = {name: loaded.weight(block, name) for name in loaded.layout.linears(block)}
        units = find_units(loaded, structured.structure)
        try:
            return structured.prune_units(every, known.get(units.linear), units, spec.sparsity)
        except ModelError as error:
            raise ModelError(f"block {block}: {error}") from error
    seen, changes = outputs(block), dict[str, Change]()
    for name in loaded.layout.linears(block):
        weight, where = loaded.weight(block, name), f"block {block}, linear '{name}'"
        with able_pruner(pruner, known.get(name), seen.get(name), where) as (able, stats):
            changes[name] = able.prune(weight, stats, spec.of(name))
    return changes


def _columns(statistics: StatisticsFolder, block: int) -> dict[str, ColumnStatistics]:
    found = statistics.linears(block, "columns")
    return {name: one for name, one in found.items() if isinstance(one, ColumnStatistics)}


class Collect(Method):
    """Gathers the statistics of `strategy.statistics`; models are made of them with `pruner`."""

    name = "collect"
    solves_at_once = False
    words = Words(
        label="Collect",
        does="clients send statistics of the dense model once, any number of models are made of "
        "them",
        sends="the statistics named in `strategy.statistics`: sums over its tokens of what enters "
        "each matrix, and numbers of tokens",
        tells="The sums are exact statistics of each client's texts; second moments, where they "
        "are collected, tell more and are to be treated like gradients.",
    )

    with_noise = "strategy.statistics=columns"

    def exchange(self, config: RunConfig) -> Collection:
        return Collection(config, config.strategy.kinds)

    def solve(
        self, config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder
    ) -> Solution:
        """Prune every linear with `pruner` on what was collected of its input."""
        return prune_from(config, loaded, statistics)


METHOD = Collect()
