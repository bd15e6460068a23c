"""The pruners by name."""

from collections.abc import Callable, Mapping
from typing import cast

from fedprune.config import PrunerConfig, RunConfig
from fedprune.config.schema import PRUNER_TYPES, StructuredConfig
from fedprune.errors import ConfigError
from fedprune.plugins import PRUNERS, load_plugin, plugin_names
from fedprune.pruning.alps import AlpsPruner
from fedprune.pruning.gptq import GptqPruner
from fedprune.pruning.grid import Grid
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.ria import RiaPruner
from fedprune.pruning.rounding import RoundingPruner
from fedprune.pruning.sparsegpt import SparseGptPruner
from fedprune.pruning.sparseswaps import SparseSwapsPruner
from fedprune.pruning.statistics import NOTHING, get_kind
from fedprune.pruning.structured import StructuredPruner
from fedprune.pruning.two_sided import TwoSidedAlpsPruner
from fedprune.pruning.wanda import (
    DenseTarget,
    MagnitudePruner,
    WandaPruner,
    WithColumnsFallback,
)

NAMES = tuple(name for name, kind in PRUNER_TYPES.items() if kind is not StructuredConfig)


def get_pruner(
    name: str,
    damping: float = 0.01,
    block_size: int = 128,
    grid: Grid | None = None,
    act_order: bool = False,
) -> Pruner:
    """Return a pruner by name.

    `name`: one of :data:`NAMES`, or the entry point of an installed package. `damping`:
    `pruner.damping`, for those that solve with sums of products or squares. `block_size`:
    `pruner.block_size`, columns that SparseGPT prunes at a time. `grid`: what GPTQ and rounding
    quantise to, and SparseGPT's survivors where it is given. `act_order`: `pruner.act_order`, of
    GPTQ. Raises ConfigError if there is none of this name, a plugin is none, or nothing records
    what it needs.
    """
    known: Mapping[str, Callable[[], Pruner]] = {
        "magnitude": MagnitudePruner,
        "wanda": WandaPruner,
        "ria": RiaPruner,
        "sparsegpt": lambda: SparseGptPruner(damping, block_size, grid),
        "alps": lambda: AlpsPruner(damping),
        "sparseswaps": lambda: SparseSwapsPruner(damping),
        "gptq": lambda: GptqPruner(_needed(name, grid), damping, act_order),
        "rounding": lambda: RoundingPruner(_needed(name, grid), damping),
    }
    if name in known:
        return known[name]()
    if name not in plugin_names(PRUNERS):
        names = ", ".join(f"'{one}'" for one in (*NAMES, *plugin_names(PRUNERS)))
        raise ConfigError(f"`pruner.name` must be one of {names}, got '{name}'.")
    return _plugin(name)


def _needed(name: str, grid: Grid | None) -> Grid:
    if grid is None:
        raise ConfigError(f"`pruner.bits` must be 4 or 8 with pruner={name}, got null.")
    return grid


def _plugin(name: str) -> Pruner:
    kind = load_plugin(PRUNERS, name)
    made = kind() if callable(kind) else kind
    lacks = [part for part in ("name", "needs", "updates", "prune") if not hasattr(made, part)]
    if lacks:
        raise ConfigError(
            f"The plugin '{name}' is no pruner: it has no {', '.join(lacks)} "
            "(see fedprune.pruning.pruner.Pruner)."
        )
    pruner = cast(Pruner, made)
    if pruner.needs != NOTHING:
        get_kind(pruner.needs)
    return pruner


def make_pruner(config: PrunerConfig) -> Pruner:
    """Return the pruner that a configuration asks for, with its settings."""
    if isinstance(config, StructuredConfig):
        return StructuredPruner(config.structure, config.multiple, config.repair, config.damping)
    if config.two_sided:
        return TwoSidedAlpsPruner(config.damping)
    return get_pruner(
        config.name, config.damping, config.block_size, make_grid(config), config.act_order
    )


def make_solver(config: PrunerConfig) -> Pruner:
    """Return :func:`make_pruner`'s, with a way where only column sums of an input are known."""
    pruner = make_pruner(config)
    if isinstance(pruner, StructuredPruner):
        return pruner
    return WithColumnsFallback(pruner, make_grid(config), config.damping)


def towards(pruner: Pruner, config: RunConfig) -> Pruner:
    """Return a solver that comes close to what `strategy.target` says."""
    if config.strategy.target != "dense":
        return pruner
    return DenseTarget(pruner, config.pruner.damping)


def make_grid(config: PrunerConfig) -> Grid | None:
    """Return what a configuration quantises to; None if it does not."""
    if config.bits is None:
        return None
    return Grid(config.bits, config.group_size, config.symmetric)
