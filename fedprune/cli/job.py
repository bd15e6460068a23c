"""One job: what a configuration asks for, its folder, and its course to the end."""

import collections
import contextlib
import dataclasses
import itertools
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, TextIO

from fedprune.cli.inline import run_inline, solve_inline
from fedprune.cli.machine import Machine, Resources, choose_resources, has_gpu_driver
from fedprune.config import (
    Resumption,
    RunConfig,
    config_from_overrides,
    replace,
    resumed_config,
    to_overrides,
)
from fedprune.disk import replace_file
from fedprune.errors import ConfigError, DataError
from fedprune.flower.app import app_folder, staged
from fedprune.flower.command import Connection, RunStatus, RuntimeFailure, Scalar, submit, wait
from fedprune.flower.superlink import runtime_environment
from fedprune.logs import read_line
from fedprune.results.text import printable


@dataclass(frozen=True)
class Job:
    """One run, ready to be submitted."""

    run_config: dict[str, Scalar]  # values for the app's run-config
    federation: dict[str, Scalar]  # options of the simulation; empty for a deployment
    folder: Path  # folder on this machine: the log, and in a simulation the results
    connection: str  # name of the user's SuperLink connection; empty for a simulation of one's own
    clients: int = 0  # number of clients of an inline simulation, 0 for a job on Flower's runtime
    resumed: bool = False  # whether the job goes on with a run that was interrupted
    note: str = ""  # how the machine is shared, for the log
    # the statistics folder that a model is made of, "" where clients are asked
    statistics: str = ""

    @property
    def inline(self) -> bool:
        """Whether the job runs in this process."""
        return self.clients > 0


def plan_job(config: RunConfig, cwd: Path, now: datetime) -> Job:
    """Return the job that a checked configuration asks for.

    `cwd`: the user's folder: `output_dir` is relative to it, but the app runs in another. `now`:
    names the folder when `output_dir` does not.
    """
    name = f"{now:%Y%m%d-%H%M%S}-{config.strategy.name}-s{config.sparsity:g}"
    folder = _new(cwd / "runs" / name)
    if config.federation.connection:
        # The results stay on the SuperLink's machine, where folders of this one mean nothing.
        return Job(_run_config(config), {}, folder, config.federation.connection)
    if config.output_dir:
        folder = cwd / Path(config.output_dir).expanduser()
    run_config = _run_config(replace(config, output_dir=str(folder)))
    if config.federation.backend == "inline":
        return Job(run_config, {}, folder, "", config.federation.num_clients)
    resources = choose_resources(config, Machine.here(gpus=_wants_gpus(config)))
    options = simulation_options(config, resources)
    return Job(run_config, options, folder, "", note=resources.reason)


def plan_resumption(resumed: Resumption, cwd: Path, now: datetime) -> Job:
    """Return the job that goes on with a run; where it runs and with how many is as it was.

    `resumed`: the run's folder, on the SuperLink's machine where `federation.connection` is set.
    """
    path = resumed.folder / "config.yaml"
    if path.is_file():
        config = resumed_config(path.read_text(encoding="utf-8"), resumed)
    elif (resumed.folder / LOG).exists():
        raise ConfigError(
            f"The run in '{resumed.folder}' ended before it had begun, there is nothing to go on "
            "with: start it again with the same command."
        )
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
    others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([folder], others) if not name.exists())


def check_inputs(config: RunConfig) -> None:
    """Refuse a model folder, texts or a tracker that are not there, while it costs nothing.

    A deployment's paths mean other machines, and hub ids are asked for when they are loaded.
    """
    if config.federation.connection:
        return
    if config.tracking.name != "none":
        from fedprune.results.tracking import check_tracker  # loads torch, too

        check_tracker(config.tracking)
    if config.model.name == "hf":
        # Loads transformers: only where there is a folder to look at.
        from fedprune.models.folder import check_folder, is_local

        if is_local(config.model.path):
            check_folder(config.model.path)
    paths = {"data.heldout_path": config.data.heldout_path}
    if config.data.source == "files":
        paths["data.path"] = config.data.path
    for key, path in paths.items():
        if path is not None and not Path(path).expanduser().exists():
            raise DataError(f"`{key}` must be a file or folder, '{path}' does not exist.")


LOG = "run.log"
_FIRST = (LOG, "superlink.log", "config.yaml.partial", ".lock")


class View(Protocol):
    """What shows a person the course of a job."""

    def watch(self, folder: Path) -> None:
        """Show where the run in a folder is."""

    def stage(self, text: str) -> None:
        """Say what happens while the run does not tell where it is."""

    def note(self, text: str) -> None:
        """Show a line that stays: a warning or an error."""


Connect = Callable[[Job, View], AbstractContextManager[Connection]]

_LOUD = re.compile(r"(WARNING|ERROR|CRITICAL)\s*:\s*(?P<text>.*)")
_SAID, _DONE = "fedprune: ", "done 1/1 · "
# Flower says this in every simulation, also in one whose size was given.
_USUAL = "default simulated SuperNodes changed"
_TAIL_LINES = 20


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    status: RunStatus  # its state; ``interrupted`` after Ctrl-C
    tail: str  # the last lines of its log
    folder: Path  # where its results are, if they are on this machine
    # the same as the ServerApp's last line says it; empty if it did not come so far
    server_folder: str

    @property
    def results(self) -> Path | None:
        """The file of results, None if there is none on this machine."""
        path = self.folder / "results.json"
        return path if path.is_file() else None


class LogReader:
    """Takes a run's log line by line: all into a file, trouble onto the screen.

    `remote`: whether the run's status file may be on another machine: then the screen gets what the
    ServerApp says of its course.
    """

    def __init__(self, file: TextIO, view: View, remote: bool = False) -> None:
        self._file = file
        self._view = view
        self._remote = remote
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self.server_folder = ""  # Known when the run is done.

    def take(self, line: str) -> None:
        """Take one line; the file has a gap where the disk is full, and the run says so itself."""
        with contextlib.suppress(OSError):
            self._file.write(line + "\n")
            self._file.flush()
        said = read_line(line)  # of a log in JSON
        line = printable(line if said is None else f"{said[0]} : {said[1]}")
        self._tail.append(line)
        told = line.partition(_SAID)[2]
        if told.startswith(_DONE):
            # The one word that Flower brings from a ServerApp of where its results are.
            self.server_folder = told.removeprefix(_DONE)
        elif told and self._remote:
            self._view.stage(told)
        elif (loud := _LOUD.match(line)) and _USUAL not in line:
            self._view.note(f"{loud[1].lower()}: {loud['text']}")

    def tail(self) -> str:
        """Return the last lines taken."""
        return "\n".join(self._tail)


def prepare(job: Job) -> None:
    """Make the job's folder before anything is started, and never write into another run's."""
    if not job.inline:
        app_folder()
    folder = job.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = not _begun_at_most(folder)
        if job.resumed or not occupied:
            (folder / LOG).touch()
    except OSError as error:
        raise ConfigError(
            f"`output_dir` must be a folder that can be written, '{folder}' is not: "
            f"{error.strerror}."
        ) from None
    if occupied and not job.resumed:
        raise ConfigError(
            f"`output_dir` must be a new or empty folder, '{folder}' is not empty. "
            "Choose another name or delete it."
        )


def _begun_at_most(folder: Path) -> bool:
    """Whether a folder is empty, or holds what a run leaves that ended before it really began."""
    return all(
        path.name in _FIRST or (path.name in ("blocks", "state") and not any(path.iterdir()))
        for path in folder.iterdir()
    )


def perform(job: Job, view: View, connect: Connect) -> Ended:
    """Run a prepared job to its end; ``connect`` gives the SuperLink for one that is not inline."""
    with _opened(job.folder / LOG, job.resumed) as file:
        reader = LogReader(file, view, remote=bool(job.connection))
        try:
            status = _execute(job, reader, view, connect)
        except RuntimeFailure as failure:
            status = RunStatus("failed", str(failure))
        except KeyboardInterrupt:
            status = RunStatus("interrupted")
    folder = Path(reader.server_folder) if reader.server_folder else job.folder
    return Ended(status, reader.tail(), folder, reader.server_folder)


def leave_reason(folder: Path, status: RunStatus) -> None:
    """Write why a run on this machine failed, where its ServerApp could not."""
    path = folder / "failure.json"
    if not path.exists():
        reason = status.details or f"it ended as {status.state}, the log has more."
        text = json.dumps({"status": "failed", "reason": reason})
        with contextlib.suppress(OSError):  # a full disk has been told of
            replace_file(path, text.encode())


@contextlib.contextmanager
def _opened(log: Path, resumed: bool) -> Iterator[TextIO]:
    file = log.open("a" if resumed else "w", encoding="utf-8")
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # the last lines, where the disk is full
            file.close()


def _execute(job: Job, reader: LogReader, view: View, connect: Connect) -> RunStatus:
    if not job.connection:
        view.watch(job.folder)
    if job.inline:
        view.stage("loading torch")
        if job.statistics:
            return solve_inline(job.statistics, job.run_config, reader.take)
        return run_inline(job.run_config, job.clients, reader.take)
    if job.note:
        reader.take(f"INFO : {job.note}")
    with connect(job, view) as connection:
        view.stage("submitting the run")
        with staged(app_folder()) as folder:
            run_id = submit(folder, connection, job.run_config, job.federation)
        view.stage("waiting for the run to start")
        ended = wait(run_id, connection, reader.take)
        if not ended.completed and connection.log is not None:
            # A process that dies before it can send its log has written here why.
            shutil.copy(connection.log, job.folder / "superlink.log")
    return ended
