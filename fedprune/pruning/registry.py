"""The pruners by name."""

from fedprune.config import PrunerConfig
from fedprune.errors import ConfigError
from fedprune.pruning.pruners import MagnitudePruner, Pruner, RiaPruner, WandaPruner
from fedprune.pruning.solvers import AlpsPruner, SparseGptPruner, SparseSwapsPruner

NAMES = ("magnitude", "wanda", "ria", "sparsegpt", "alps", "sparseswaps")


def get_pruner(name: str, damping: float = 0.01, block_size: int = 128) -> Pruner:
    """Return a pruner by name.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`.
    damping : float
        `pruner.damping`, for those that need second moments.
    block_size : int
        `pruner.block_size`, columns that SparseGPT prunes at a time.

    Raises
    ------
    ConfigError
        If there is none of this name.
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
    if name not in known:
        names = ", ".join(f"'{one}'" for one in NAMES)
        raise ConfigError(f"`pruner.name` must be one of {names}, got '{name}'.")
    return known[name]


def make_pruner(config: PrunerConfig) -> Pruner:
    """Return the pruner that a configuration asks for, with its settings."""
    return get_pruner(config.name, config.damping, config.block_size)
