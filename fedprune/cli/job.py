"""What `fedprune run` asks for: the configuration, where results go, how the machine is used."""

import dataclasses
import itertools
import math
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedprune.cli.flower import Connection, Scalar
from fedprune.cli.superlink import runtime_environment
from fedprune.config import RunConfig, to_overrides
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
    """

    run_config: dict[str, Scalar]
    federation: dict[str, Scalar]
    folder: Path
    connection: str
    clients: int = 0

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
    gpus = cuda_devices() if config.federation.client_gpus else 0
    federation = simulation_options(config, usable_cpus(), gpus)
    return Job(run_config, federation, folder, "")


def named_connection(name: str) -> Connection:
    """Return one of the SuperLink connections in the user's own Flower configuration."""
    environment = runtime_environment()
    home = Path(environment.get("FLWR_HOME") or Path.home() / ".flwr")
    home.mkdir(parents=True, exist_ok=True)
    return Connection(name, environment, home)


def simulation_options(config: RunConfig, cpus: int, gpus: int) -> dict[str, Scalar]:
    """Return the options of Flower's simulation on so many processors and GPUs, in kebab-case.

    Ray starts one worker process for every `federation.client_cpus` of the processors it is told
    of, each with its own Python, torch and copy of the model, and all virtual clients share them.
    Workers beyond one a core only compete for it, and beyond one a client have nothing to do; so
    Ray is told of no more than that. A model that fits fewer times than there are cores is made
    to fit by raising `federation.client_cpus`.

    Raises
    ------
    ConfigError
        If not even one worker fits.
    """
    federation = config.federation
    workers = min(cpus // federation.client_cpus, federation.num_clients)
    if workers < 1:
        raise ConfigError(
            f"`federation.client_cpus` must be at most {cpus}, the processors of this machine, "
            f"got {federation.client_cpus}."
        )
    if federation.client_gpus > gpus:
        raise ConfigError(
            f"`federation.client_gpus` must be at most {gpus}, the CUDA devices that torch finds "
            f"on this machine, got {federation.client_gpus:g}. See `fedprune doctor`."
        )
    return {
        "num-supernodes": federation.num_clients,
        "client-resources-num-cpus": federation.client_cpus,
        "client-resources-num-gpus": float(federation.client_gpus),
        "init-args-num-cpus": workers * federation.client_cpus,
    }


def usable_cpus() -> int:
    """Return the number of processors this process may use, a container's limit included."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        limit = count or 1
    return max(1, min(count or 1, limit))


def cuda_devices() -> int:
    """Return the number of CUDA devices that torch can use."""
    # Here, because it takes seconds that a run without GPUs does not need to wait.
    import torch

    return torch.cuda.device_count()


def _run_config(config: RunConfig) -> dict[str, Scalar]:
    return {"overrides": shlex.join(to_overrides(config))}


def _new(folder: Path) -> Path:
    def names() -> Iterator[Path]:
        yield folder
        for number in itertools.count(2):
            yield folder.with_name(f"{folder.name}-{number}")

    return next(name for name in names() if not name.exists())
