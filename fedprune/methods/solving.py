"""Models made of collected statistics, without any client."""

from collections.abc import Mapping
from functools import lru_cache, partial

from fedprune.config import RunConfig, allocation_of, resolved_allocation, resolved_linears
from fedprune.config.allocation import SURVEYED
from fedprune.errors import ModelError
from fedprune.methods.registry import Solution
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.methods.survey import by_outliers, by_sensitivity
from fedprune.models.changes import Recalled
from fedprune.models.loading import LoadedModel
from fedprune.pruning.compaction import plan_narrowing
from fedprune.pruning.groups import block_spec, check_allocation
from fedprune.pruning.output_gradients import OutputMoments, mean_squares
from fedprune.pruning.owl import outlier_share
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.registry import make_solver
from fedprune.pruning.sensitivity import Curve, block_curves
from fedprune.pruning.statistics import NOTHING, ColumnStatistics, Statistic
from fedprune.pruning.structured import unit_pruner
from fedprune.pruning.units import find_units
from fedprune.pruning.wanda import able_pruner
from fedprune.wire.changes import Change


def prune_from(config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder) -> Solution:
    """Prune every linear of a model with `pruner` on collected statistics.

    The same as a one-shot run on the dense model (`schedule.prefix=dense`) with the clients that
    took part, to the last bit.

    `config`: `pruner`, `sparsity` and `allocation` are followed. Returns its changes are made block
    by block, when they are asked for. Raises ConfigError if what is needed was not collected.
    """
    pruner = make_solver(config.pruner)
    if pruner.needs != NOTHING:
        statistics.require(pruner.needs, f"`pruner.name` '{pruner.name}'")
    figures: dict[str, object] = {}
    blocks, chosen = range(statistics.num_blocks), allocation_of(config)
    if chosen in SURVEYED:
        statistics.require("columns", f"allocation={chosen}")
    if chosen == "owl":
        shares = [_outliers(config, loaded, statistics, block) for block in blocks]
        figures["allocation"] = told = by_outliers(config, shares)
        config = resolved_allocation(config, told["sparsities"])
    elif chosen == "sensitivity":
        minded = mean_squares(config, loaded)
        curves = [_curves(config, loaded, statistics, b, minded[b]) for b in blocks]
        figures["allocation"] = told = by_sensitivity(config, curves)
        config = resolved_linears(config, told["sparsities"])
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


def _outliers(
    config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder, block: int
) -> float | None:
    columns = _columns(statistics, block)
    weights = {name: loaded.weight(block, name) for name in loaded.layout.linears(block)}
    return outlier_share(weights, columns, config.allocation.threshold)


def _curves(
    config: RunConfig,
    loaded: LoadedModel,
    statistics: StatisticsFolder,
    block: int,
    sensitivities: Mapping[str, float],
) -> dict[str, Curve]:
    linears = loaded.layout.linears(block)
    experts = {name for name, linear in linears.items() if linear.expert}
    weight, columns = partial(loaded.weight, block), _columns(statistics, block)
    return block_curves(weight, columns, sensitivities, config.pruner.group, experts)


def _columns(statistics: StatisticsFolder, block: int) -> dict[str, ColumnStatistics]:
    found = statistics.linears(block, "columns")
    return {name: one for name, one in found.items() if isinstance(one, ColumnStatistics)}
