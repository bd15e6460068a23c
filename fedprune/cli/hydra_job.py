"""A run as a Hydra application, so that Hydra's sweepers and launchers can drive it.

The job's folder is Hydra's, and it returns the figure that a sweeper minimises.
"""

import dataclasses
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from fedprune.cli import find_our_own
from fedprune.cli.job import check_inputs, leave_reason, perform, plan_job
from fedprune.cli.machine import parallel_jobs
from fedprune.cli.progress import PlainView, progress_view
from fedprune.cli.run import connect
from fedprune.cli.screen import note_console
from fedprune.cli.sweep import Account, run_all
from fedprune.cli.sweep_plan import SweepJob
from fedprune.cli.sweep_report import collect_runs
from fedprune.config import RunConfig, config_from_mapping, replace
from fedprune.config.overrides import CONF
from fedprune.errors import ConfigError
from fedprune.flower.command import RuntimeFailure

_NAME = "fedprune_hydra"
_PRIMARY = {
    "defaults": ["config", {"override hydra/launcher": "fedprune"}, "_self_"],
    # As in `fedprune sweep`: starting Flower's runtime takes longer than a small job.
    "federation": {"backend": "inline"},
    "hydra": {
        "job": {"name": "fedprune"},
        "callbacks": {"fedprune": {"_target_": f"{__name__}.Collect"}},
    },
}


def main() -> None:
    """Run what the command line asks of Hydra."""
    find_our_own()
    ConfigStore.instance().store(name=_NAME, node=_PRIMARY)
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=_NAME)(job)()


def job(config: DictConfig) -> float:
    """Run one job in Hydra's folder and return its objective.

    `config`: composed by Hydra from ``conf``. Raises RuntimeFailure: the run did not complete.
    Raises KeyboardInterrupt: it was stopped.
    """
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    wanted = _wanted(config, folder)
    planned = dataclasses.replace(plan_job(wanted, Path.cwd(), datetime.now()), folder=folder)
    notes = note_console()
    # Another launcher may run many at once, which would draw over one another.
    multirun = settings.mode == RunMode.MULTIRUN
    with PlainView(notes, sparing=True) if multirun else progress_view(notes) as view:
        if multirun:
            view.watch(folder, f"job {settings.job.num}")
        ended = perform(planned, view, connect)
    if ended.status.state == "interrupted":
        raise KeyboardInterrupt
    if not ended.status.completed:
        if not planned.connection:
            leave_reason(folder, ended.status)
        raise RuntimeFailure(ended.status.details or f"It ended as {ended.status.state}.")
    if ended.results is None:
        raise RuntimeFailure("The results are on the SuperLink's machine, which tells no figure.")
    return objective(json.loads(ended.results.read_text(encoding="utf-8")))


def launch(
    context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    at_once: int | None,
) -> list[JobReturn]:
    """Run a batch of a multirun's jobs as `fedprune sweep` runs its own.

    `at_once`: how many at once; as many as the machine bears if None. Returns their objectives; of
    a job that failed, the error.
    """
    configs: list[tuple[DictConfig, DictConfig]] = []
    jobs: list[SweepJob] = []
    for number, overrides in enumerate(job_overrides, first):
        one = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(one):
            one.hydra.job.id = one.hydra.job.num = number
        folder = Path(one.hydra.sweep.dir, one.hydra.sweep.subdir).absolute()
        with open_dict(one):
            hydra_part = one.pop("hydra")
        settings = dict(text.partition("=")[::2] for text in filter_overrides(overrides))
        configs.append((one, hydra_part))
        jobs.append(SweepJob(settings, _wanted(one, folder), folder, len(jobs)))
    account = Account(jobs, note_console(), keep_models=True)
    account.skip_what_is_done()
    run_all(account, parallel_jobs([jobs[place].config for place in account.todo], at_once))
    if account.failures:  # Hydra then ends without asking for its callbacks
        _collect(config, account.seconds)
    found = []
    for place, (one, hydra_part) in enumerate(configs):
        result = JobReturn(job_overrides[place], one, hydra_part, str(jobs[place].folder))
        result.task_name = hydra_part.job.name
        failed = account.failures.get(place)
        result.status = JobStatus.COMPLETED if failed is None else JobStatus.FAILED
        result.return_value = (
            objective(account.results[place]) if failed is None else RuntimeFailure(failed)
        )
        found.append(result)
    return found


def _wanted(config: DictConfig, folder: Path) -> RunConfig:
    """Return the checked configuration of a job that Hydra has composed."""
    wanted = config_from_mapping(OmegaConf.to_container(config, resolve=True))
    if wanted.output_dir:
        raise ConfigError(
            "`output_dir` is chosen by Hydra here: set hydra.run.dir or hydra.sweep.dir instead."
        )
    if not wanted.federation.connection:  # where this machine's folders mean nothing
        wanted = replace(wanted, output_dir=str(folder))
    check_inputs(wanted)
    return wanted


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
        _collect(config, time.monotonic() - self._begun)


def _collect(config: DictConfig, seconds: float) -> None:
    folder = Path(config.hydra.sweep.dir).absolute()
    command = shlex.join(["python", "-m", "fedprune.cli", *sys.argv[1:]])
    with suppress(ConfigError):  # not one run has results
        collect_runs(Console(), folder, command, seconds)
