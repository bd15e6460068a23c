"""Models made of collected statistics, without any client."""

from functools import lru_cache, partial

from fedprune.config import RunConfig, block_sparsity, resolved_allocation
from fedprune.errors import ModelError
from fedprune.methods.registry import Solution
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.models.changes import Recalled
from fedprune.models.loading import LoadedModel
from fedprune.pruning.compaction import plan_narrowing
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.owl import outlier_share, owl_sparsities
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.registry import make_solver
from fedprune.pruning.statistics import NOTHING, ColumnStatistics, Statistic
from fedprune.pruning.structured import unit_pruner
from fedprune.pruning.units import find_units
from fedprune.pruning.wanda import prune_known
from fedprune.wire.changes import Change


def prune_from(config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder) -> Solution:
    """Prune every linear of a model with `pruner` on collected statistics.

    The same as a one-shot run on the dense model (`schedule.prefix=dense`) with the clients that
    took part, to the last bit.

    Parameters
    ----------
    config : RunConfig
        `pruner`, `sparsity` and `allocation` are followed.
    loaded : LoadedModel
        The dense model.
    statistics : StatisticsFolder
        Of this model.

    Returns
    -------
    Solution
        Its changes are made block by block, when they are asked for.

    Raises
    ------
    ConfigError
        If what is needed was not collected.
    """
    pruner = make_solver(config.pruner)
    if pruner.needs != NOTHING:
        statistics.require(pruner.needs, f"`pruner.name` '{pruner.name}'")
    figures: dict[str, object] = {}
    if config.allocation.name == "owl":
        statistics.require("columns", "allocation=owl")
        shares = [_outliers(config, loaded, statistics, b) for b in range(statistics.num_blocks)]
        sparsities = owl_sparsities(shares, config.sparsity, config.allocation.spread)
        figures["allocation"] = {"outlier_shares": shares, "sparsities": sparsities}
        config = resolved_allocation(config, sparsities)
    blocks = range(statistics.num_blocks)
    # What writes a narrower model asks for a block's changes several times in a row.
    solve = lru_cache(maxsize=1)(partial(_block, config, loaded, statistics, pruner))
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
    block: int,
) -> dict[str, Change]:
    sparsity = block_sparsity(config, block, statistics.num_blocks)
    spec = MaskSpec(sparsity, config.pruner.pattern, config.pruner.group)
    known: dict[str, Statistic] = {}
    if pruner.needs != NOTHING:
        known = statistics.linears(block, pruner.needs)
    found: dict[str, Change] = {}
    structured = unit_pruner(pruner)
    if structured is not None:
        weights = {name: loaded.weight(block, name) for name in loaded.layout.linears(block)}
        units = find_units(loaded, structured.structure)
        try:
            return structured.prune_units(weights, known.get(units.linear), units, sparsity)
        except ModelError as error:
            raise ModelError(f"block {block}: {error}") from error
    for name in loaded.layout.linears(block):
        try:
            weight = loaded.weight(block, name)
            found[name] = prune_known(pruner, weight, known.get(name), spec)
        except ModelError as error:
            raise ModelError(f"block {block}, linear '{name}': {error}") from error
    return found


def _outliers(
    config: RunConfig, loaded: LoadedModel, statistics: StatisticsFolder, block: int
) -> float | None:
    found = statistics.linears(block, "columns")
    columns = {name: one for name, one in found.items() if isinstance(one, ColumnStatistics)}
    weights = {name: loaded.weight(block, name) for name in loaded.layout.linears(block)}
    return outlier_share(weights, columns, config.allocation.threshold)
