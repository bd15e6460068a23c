"""`fedprune run`: submit a job, show where it is, and tell by the exit code how it ended."""

import collections
import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console

from fedprune.cli.app import app_folder, staged
from fedprune.cli.flower import Connection, RunStatus, RuntimeFailure, submit, wait
from fedprune.cli.inputs import check_inputs
from fedprune.cli.job import Job, named_connection, plan_job
from fedprune.cli.progress import ProgressView, progress_view
from fedprune.cli.superlink import private_superlink
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.reporting.progress import parse_progress
from fedprune.reporting.table import render

INTERRUPTED = 130

_LOUD = re.compile(r"(WARNING|ERROR|CRITICAL)\s*:\s*(?P<text>.*)")
# Flower says this in every simulation, also in one whose size was given.
_USUAL = "default simulated SuperNodes changed"
_TAIL_LINES = 20


class LogReader:
    """Takes a run's log line by line: all into a file, progress and trouble onto the screen.

    Parameters
    ----------
    file : TextIO
        The run's log file.
    view : ProgressView
        The screen.
    """

    def __init__(self, file: TextIO, view: ProgressView) -> None:
        self._file = file
        self._view = view
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self.server_folder = ""  # Known when the run is done.

    def take(self, line: str) -> None:
        """Take one line."""
        self._file.write(line + "\n")
        self._file.flush()
        self._tail.append(line)
        progress = parse_progress(line)
        if progress is not None:
            self._view.update(progress)
            if progress.phase == "done":
                self.server_folder = progress.detail
        elif (loud := _LOUD.match(line)) and _USUAL not in line:
            self._view.note(f"{loud[1].lower()}: {loud['text']}")

    def tail(self) -> str:
        """Return the last lines taken."""
        return "\n".join(self._tail)


def run_job(overrides: Sequence[str]) -> int:
    """Run a federated pruning job to its end and return the exit code.

    Parameters
    ----------
    overrides : sequence of str
        Hydra overrides and shortcuts, for example ``["sparsity=0.6", "federation.num_clients=4"]``.

    Returns
    -------
    int
        0 when it is done, 1 when it failed, 130 when it was interrupted.

    Raises
    ------
    ConfigError
        The configuration is wrong; nothing has been started.
    FedpruneError
        The app is not where fedprune is.
    """
    screen, notes = Console(), Console(stderr=True)
    config = config_from_overrides(overrides)
    check_inputs(config)
    app = app_folder()
    job = plan_job(config, Path.cwd(), datetime.now())
    _prepare(job.folder)
    log = job.folder / "run.log"
    with log.open("w", encoding="utf-8") as file, progress_view(notes) as view:
        reader = LogReader(file, view)
        try:
            ended = _execute(app, job, reader, view)
        except RuntimeFailure as failure:
            ended = RunStatus("failed", str(failure))
        except KeyboardInterrupt:
            ended = RunStatus("interrupted")
    if ended.state == "interrupted":
        text = f"Interrupted; the run is stopped. Log: {log}"
        notes.print(text, soft_wrap=True, highlight=False)
        return INTERRUPTED
    if not ended.completed:
        _show_failure(notes, ended, reader, log)
        return 1
    return _show_results(screen, notes, job, reader)


def _prepare(folder: Path) -> None:
    """Make the run's folder before anything is started, and never write into another run's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(
            f"`output_dir` must be a folder that can be written, '{folder}' is not: "
            f"{error.strerror}."
        ) from None
    if occupied:
        raise ConfigError(
            f"`output_dir` must be a new or empty folder, '{folder}' is not empty. "
            "Choose another name or delete it."
        )


def _execute(app: Path, job: Job, reader: LogReader, view: ProgressView) -> RunStatus:
    with _connect(job, view) as connection:
        view.stage("submitting the run")
        with staged(app) as folder:
            run_id = submit(folder, connection, job.run_config, job.federation)
        view.stage("waiting for the run to start")
        ended = wait(run_id, connection, reader.take)
        if not ended.completed and connection.log is not None:
            # A process that dies before it can send its log has written here why.
            shutil.copy(connection.log, job.folder / "superlink.log")
    return ended


@contextlib.contextmanager
def _connect(job: Job, view: ProgressView) -> Iterator[Connection]:
    if job.connection:
        yield named_connection(job.connection)
        return
    view.stage("starting Flower's SuperLink")
    with private_superlink() as connection:
        yield connection


def _show_failure(notes: Console, ended: RunStatus, reader: LogReader, log: Path) -> None:
    details = _own_reason(log.parent)
    if not details:  # nothing that fedprune foresaw: the log's end is the best there is
        details = ended.details
        if reader.tail():
            notes.print(reader.tail(), style="dim", markup=False, highlight=False, soft_wrap=True)
    state = ended.state.removeprefix("finished:")
    notes.print(
        f"The run {'was stopped' if state == 'stopped' else 'failed'}. {details}".rstrip(),
        style="red",
        markup=False,
        soft_wrap=True,
    )
    notes.print(f"Logs: {log.parent}", soft_wrap=True, highlight=False)


def _own_reason(folder: Path) -> str:
    """Return why the ServerApp gave up, where it did so on purpose."""
    try:
        failure = json.loads((folder / "failure.json").read_text(encoding="utf-8"))
        return str(failure["reason"])
    except (OSError, ValueError, KeyError):
        return ""


def _show_results(screen: Console, notes: Console, job: Job, reader: LogReader) -> int:
    folder = Path(reader.server_folder) if reader.server_folder else job.folder
    results = folder / "results.json"
    if results.is_file():
        screen.print(render(json.loads(results.read_text(encoding="utf-8"))))
        screen.print(str(folder), soft_wrap=True, highlight=False)
        return 0
    if job.connection:
        place = f", in {reader.server_folder}" if reader.server_folder else ""
        screen.print(f"The results are on the SuperLink's machine{place}.", soft_wrap=True)
        return 0
    notes.print(
        f"The run ended without '{results}'. Logs: {job.folder}", style="red", soft_wrap=True
    )
    return 1
