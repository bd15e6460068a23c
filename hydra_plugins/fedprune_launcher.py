"""The launcher `fedprune` for Hydra, which looks for launchers in a package of this name only."""

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

ConfigStore.instance().store(
    group="hydra/launcher",
    name="fedprune",
    node={"_target_": f"{__name__}.FedpruneLauncher", "jobs": None},
    provider="fedprune",
)


class FedpruneLauncher(Launcher):  # type: ignore[misc]
    """Runs jobs as `fedprune sweep` does: side by side, what is done skipped, a failure survived.

    Parameters
    ----------
    jobs : int or None
        How many at once; as many as the machine bears if None.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self._jobs = jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra tells before a sweep."""
        self._context, self._config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of jobs."""
        # Here, because Hydra imports all plugins whenever it composes a configuration.
        from fedprune.cli.hydra_job import launch

        return launch(self._context, self._config, job_overrides, initial_job_idx, self._jobs)
