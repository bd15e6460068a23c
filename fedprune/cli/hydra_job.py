"""A run as a Hydra application, so that Hydra's sweepers and launchers can drive it.

The job's folder is Hydra's, and it returns the figure that a sweeper minimises.
"""

import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from fedprune.cli.job import check_inputs, perform, plan_job
from fedprune.cli.progress import PlainView, progress_view
from fedprune.cli.run import connect, note_console
from fedprune.cli.sweep_report import collect_runs
from fedprune.config import config_from_mapping
from fedprune.config.overrides import CONF
from fedprune.errors import ConfigError
from fedprune.flower.command import RuntimeFailure

_NAME = "fedprune_hydra"
_PRIMARY = {
    "defaults": ["config", "_self_"],
    # As in `fedprune sweep`: starting Flower's runtime takes longer than a small job.
    "federation": {"backend": "inline"},
    "hydra": {
        "job": {"name": "fedprune"},
        "callbacks": {"fedprune": {"_target_": f"{__name__}.Collect"}},
    },
}


def main() -> None:
    """Run what the command line asks of Hydra."""
    ConfigStore.instance().store(name=_NAME, node=_PRIMARY)
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=_NAME)(job)()


def job(config: DictConfig) -> float:
    """Run one job in Hydra's folder and return its objective.

    Parameters
    ----------
    config : DictConfig
        Composed by Hydra from ``conf``.

    Returns
    -------
    float
        The perplexity, see :func:`objective`.

    Raises
    ------
    ConfigError
        The configuration is wrong.
    RuntimeFailure
        The run did not complete.
    KeyboardInterrupt
        It was stopped.
    """
    wanted = config_from_mapping(OmegaConf.to_container(config, resolve=True))
    if wanted.output_dir:
        raise ConfigError(
            "`output_dir` is chosen by Hydra here: set hydra.run.dir or hydra.sweep.dir instead."
        )
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if not wanted.federation.connection:  # where this machine's folders mean nothing
        wanted = replace(wanted, output_dir=str(folder))
    check_inputs(wanted)
    planned = replace(plan_job(wanted, Path.cwd(), datetime.now()), folder=folder)
    notes = note_console()
    # A launcher may run many at once, which would draw over one another.
    multirun = settings.mode == RunMode.MULTIRUN
    name = f"job {settings.job.num}: " if multirun else ""
    with PlainView(notes, prefix=name) if multirun else progress_view(notes) as view:
        ended = perform(planned, view, connect)
    if ended.status.state == "interrupted":
        raise KeyboardInterrupt
    if not ended.status.completed:
        raise RuntimeFailure(ended.status.details or f"It ended as {ended.status.state}.")
    if ended.results is None:
        raise RuntimeFailure("The results are on the SuperLink's machine, which tells no figure.")
    return objective(json.loads(ended.results.read_text(encoding="utf-8")))


def objective(results: Mapping[str, Any]) -> float:
    """Return the pruned model's perplexity, the geometric mean over several data sets.

    Infinity where it was destroyed; where none was measured there is nothing to minimise.
    """
    figures = [values["pruned"] for values in results["perplexity"].values()]
    if any(figure is None for figure in figures):
        return math.inf
    return statistics.geometric_mean(figures)


class Collect(Callback):  # type: ignore[misc]
    """Ends a multirun with the table and the page of its runs."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        """Write them into the folder of the multirun."""
        folder = Path(config.hydra.sweep.dir).absolute()
        command = shlex.join(["python", "-m", "fedprune.cli", *sys.argv[1:]])
        collect_runs(Console(), folder, command, time.monotonic() - self._begun)
