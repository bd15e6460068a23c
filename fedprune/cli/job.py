"""What `fedprune run` asks for: the configuration, where results go, how the machine is used."""

import dataclasses
import itertools
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedprune.cli.flower import Connection, Scalar
from fedprune.cli.machine import has_gpu_driver
from fedprune.cli.resources import Machine, Resources, choose_resources
from fedprune.cli.superlink import runtime_environment
from fedprune.config import (
    Resumption,
    RunConfig,
    config_from_overrides,
    resumed_config,
    to_overrides,
)
from fedprune.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """One run, ready to be submitted.

    Attributes
    ----------
    run_config : dict
        Values for the app's run-config.
    federation : dict
        Options of the simulation; empty for a deployment.
    folder : Path
        Folder on this machine: the log, and in a simulation the results.
    connection : str
        Name of the user's SuperLink connection; empty for a simulation of one's own.
    clients : int
        Number of clients of an inline simulation, 0 for a job on Flower's runtime.
    resumed : bool
        Whether the job goes on with a run that was interrupted.
    note : str
        How the machine is shared, for the log.
    """

    run_config: dict[str, Scalar]
    federation: dict[str, Scalar]
    folder: Path
    connection: str
    clients: int = 0
    resumed: bool = False
    note: str = ""

    @property
    def inline(self) -> bool:
        """Whether the job runs in this process."""
        return self.clients > 0


def plan_job(config: RunConfig, cwd: Path, now: datetime) -> Job:
    """Return the job that a checked configuration asks for.

    Parameters
    ----------
    config : RunConfig
        What to run.
    cwd : Path
        The user's folder: `output_dir` is relative to it, but the app runs in another.
    now : datetime
        Names the folder when `output_dir` does not.

    Raises
    ------
    ConfigError
        If a simulated client needs more processors or GPUs than there are.
    """
    name = f"{now:%Y%m%d-%H%M%S}-{config.strategy.name}-s{config.sparsity:g}"
    folder = _new(cwd / "runs" / name)
    if config.federation.connection:
        # The results stay on the SuperLink's machine, where folders of this one mean nothing.
        return Job(_run_config(config), {}, folder, config.federation.connection)
    if config.output_dir:
        folder = cwd / Path(config.output_dir).expanduser()
    run_config = _run_config(dataclasses.replace(config, output_dir=str(folder)))
    if config.federation.backend == "inline":
        return Job(run_config, {}, folder, "", config.federation.num_clients)
    resources = choose_resources(config, Machine.here(gpus=_wants_gpus(config)))
    options = simulation_options(config, resources)
    return Job(run_config, options, folder, "", note=resources.reason)


def plan_resumption(resumed: Resumption, cwd: Path, now: datetime) -> Job:
    """Return the job that goes on with a run; where it runs and with how many is as it was.

    Parameters
    ----------
    resumed : Resumption
        The run's folder, on the SuperLink's machine where `federation.connection` is set.
    cwd, now : Path, datetime
        As for :func:`plan_job`.

    Raises
    ------
    ConfigError
        If there is no run in the folder, or the SuperLink that it was given to is elsewhere and
        not named.
    """
    path = resumed.folder / "config.yaml"
    if path.is_file():
        config = resumed_config(path.read_text(encoding="utf-8"), resumed)
    else:
        config = config_from_overrides(resumed.overrides)
        if not config.federation.connection:
            raise ConfigError(
                f"`resume` must be the folder of a run, there is no configuration in "
                f"'{resumed.folder}'. A folder on a SuperLink's machine needs "
                "`federation.connection` as well."
            )
    words = [f"resume={resumed.folder}", *resumed.overrides]
    job = plan_job(config, cwd, now)
    return dataclasses.replace(job, run_config={"overrides": shlex.join(words)}, resumed=True)


def named_connection(name: str) -> Connection:
    """Return one of the SuperLink connections in the user's own Flower configuration."""
    environment = runtime_environment()
    home = Path(environment.get("FLWR_HOME") or Path.home() / ".flwr")
    home.mkdir(parents=True, exist_ok=True)
    return Connection(name, environment, home)


def simulation_options(config: RunConfig, resources: Resources) -> dict[str, Scalar]:
    """Return the options of Flower's simulation, in kebab-case.

    Ray starts one worker process for every `federation.client_cpus` of the processors it is told
    of, each with its own Python and torch, and all virtual clients share them. Workers beyond those
    of ``resources`` only compete; so Ray is told of no more processors than these take.
    """
    return {
        "num-supernodes": config.federation.num_clients,
        "client-resources-num-cpus": resources.client_cpus,
        "client-resources-num-gpus": resources.client_gpus,
        "init-args-num-cpus": resources.workers * resources.client_cpus,
    }


def _wants_gpus(config: RunConfig) -> bool:
    asked = config.federation.client_gpus
    return config.pruner.device != "cpu" and has_gpu_driver() if asked is None else asked > 0


def _run_config(config: RunConfig) -> dict[str, Scalar]:
    return {"overrides": shlex.join(to_overrides(config))}


def _new(folder: Path) -> Path:
    def names() -> Iterator[Path]:
        yield folder
        for number in itertools.count(2):
            yield folder.with_name(f"{folder.name}-{number}")

    return next(name for name in names() if not name.exists())
