"""The pruners by name."""

from typing import cast

from fedprune.config import PrunerConfig
from fedprune.errors import ConfigError
from fedprune.plugins import PRUNERS, load_plugin, plugin_names
from fedprune.pruning.alps import AlpsPruner
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.ria import RiaPruner
from fedprune.pruning.sparsegpt import SparseGptPruner
from fedprune.pruning.sparseswaps import SparseSwapsPruner
from fedprune.pruning.statistics import NOTHING, get_kind
from fedprune.pruning.wanda import MagnitudePruner, WandaPruner

NAMES = ("magnitude", "wanda", "ria", "sparsegpt", "alps", "sparseswaps")


def get_pruner(name: str, damping: float = 0.01, block_size: int = 128) -> Pruner:
    """Return a pruner by name.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`, or the entry point of an installed package.
    damping : float
        `pruner.damping`, for those that need second moments.
    block_size : int
        `pruner.block_size`, columns that SparseGPT prunes at a time.

    Raises
    ------
    ConfigError
        If there is none of this name, a plugin is none, or nothing records what it needs.
    """
    known: dict[str, Pruner] = {
        pruner.name: pruner
        for pruner in (
            MagnitudePruner(),
            WandaPruner(),
            RiaPruner(),
            SparseGptPruner(damping, block_size),
            AlpsPruner(damping),
            SparseSwapsPruner(damping),
        )
    }
    if name in known:
        return known[name]
    if name not in plugin_names(PRUNERS):
        names = ", ".join(f"'{one}'" for one in (*NAMES, *plugin_names(PRUNERS)))
        raise ConfigError(f"`pruner.name` must be one of {names}, got '{name}'.")
    return _plugin(name)


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
    return get_pruner(config.name, config.damping, config.block_size)
