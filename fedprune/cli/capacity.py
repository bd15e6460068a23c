"""How many inline jobs this machine can run side by side."""

from collections.abc import Sequence

from fedprune.cli.machine import has_gpu_driver, usable_cpus
from fedprune.cli.resources import worker_bytes
from fedprune.config import RunConfig
from fedprune.errors import ConfigError
from fedprune.memory import free_memory

_DEVICES = ("cuda", "auto")


def parallel_jobs(configs: Sequence[RunConfig], asked: int | None) -> int:
    """Return how many of some jobs to run at once.

    As many as there are processors, as fit into the free memory with the blocks that they hold,
    and as there are jobs. One at a time where jobs need a GPU, where they run on Flower's runtime,
    which uses the whole machine by itself, and where nobody knows how large the model is.

    Parameters
    ----------
    configs : sequence of RunConfig
        The jobs.
    asked : int or None
        What the user wants; None leaves it to the machine.

    Raises
    ------
    ConfigError
        If several jobs at once are asked for that cannot be.
    """
    others = [config for config in configs if not _inline(config)]
    if asked is not None and asked < 1:
        raise ConfigError(f"`--jobs` must be at least 1, got {asked}.")
    if others:
        if asked is not None and asked > 1:
            raise ConfigError(
                f"`--jobs` must be 1 for jobs on Flower's runtime, got {asked}. Only jobs with "
                "federation.backend=inline run side by side."
            )
        return 1
    wanted = asked if asked is not None else min(map(_fitting, configs), default=1)
    return max(1, min(wanted, len(configs)))


def _inline(config: RunConfig) -> bool:
    return config.federation.backend == "inline" and not config.federation.connection


def _fitting(config: RunConfig) -> int:
    if config.pruner.device.startswith(_DEVICES) and has_gpu_driver():
        return 1
    need = worker_bytes(config.model)
    return 1 if need is None else min(usable_cpus(), free_memory() // need)
