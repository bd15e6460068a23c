"""One job from its folder to its end, in Flower's runtime or inside this process."""

import collections
import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fedprune.cli.app import app_folder, staged
from fedprune.cli.flower import Connection, RunStatus, RuntimeFailure, submit, wait
from fedprune.cli.inline import run_inline
from fedprune.cli.job import Job
from fedprune.cli.progress import ProgressView
from fedprune.errors import ConfigError
from fedprune.logs import read_line
from fedprune.reporting.printable import printable
from fedprune.reporting.progress import parse_progress

LOG = "run.log"

Connect = Callable[[Job, ProgressView], AbstractContextManager[Connection]]

_LOUD = re.compile(r"(WARNING|ERROR|CRITICAL)\s*:\s*(?P<text>.*)")
# Flower says this in every simulation, also in one whose size was given.
_USUAL = "default simulated SuperNodes changed"
_TAIL_LINES = 20


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes
    ----------
    status : RunStatus
        Its state; ``interrupted`` after Ctrl-C.
    tail : str
        The last lines of its log.
    folder : Path
        Where its results are, if they are on this machine.
    server_folder : str
        The same as the ServerApp said it; empty if it did not come so far.
    """

    status: RunStatus
    tail: str
    folder: Path
    server_folder: str

    @property
    def results(self) -> Path | None:
        """The file of results, None if there is none on this machine."""
        path = self.folder / "results.json"
        return path if path.is_file() else None


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
        """Take one line; the file has a gap where the disk is full, and the run says so itself."""
        with contextlib.suppress(OSError):
            self._file.write(line + "\n")
            self._file.flush()
        said = read_line(line)  # of a log in JSON
        line = printable(line if said is None else f"{said[0]} : {said[1]}")
        self._tail.append(line)
        progress = parse_progress(line)
        if progress is not None:
            self._view.update(progress)
            if progress.phase == "done":
                self.server_folder = progress.text
        elif (loud := _LOUD.match(line)) and _USUAL not in line:
            self._view.note(f"{loud[1].lower()}: {loud['text']}")

    def tail(self) -> str:
        """Return the last lines taken."""
        return "\n".join(self._tail)


def prepare(job: Job) -> None:
    """Make the job's folder before anything is started, and never write into another run's.

    Raises
    ------
    ConfigError
        The folder cannot be written or is not empty.
    FedpruneError
        The job needs Flower's runtime, and the app is not where fedprune is.
    """
    if not job.inline:
        app_folder()
    folder = job.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
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


def perform(job: Job, view: ProgressView, connect: Connect) -> Ended:
    """Run a prepared job to its end.

    Parameters
    ----------
    job : Job
        What to run.
    view : ProgressView
        Shows its course.
    connect : Callable
        Gives the SuperLink for a job that is not inline.
    """
    with _opened(job.folder / LOG, job.resumed) as file:
        reader = LogReader(file, view)
        try:
            status = _execute(job, reader, view, connect)
        except RuntimeFailure as failure:
            status = RunStatus("failed", str(failure))
        except KeyboardInterrupt:
            status = RunStatus("interrupted")
    folder = Path(reader.server_folder) if reader.server_folder else job.folder
    return Ended(status, reader.tail(), folder, reader.server_folder)


@contextlib.contextmanager
def _opened(log: Path, resumed: bool) -> Iterator[TextIO]:
    file = log.open("a" if resumed else "w", encoding="utf-8")
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # the last lines, where the disk is full
            file.close()


def _execute(job: Job, reader: LogReader, view: ProgressView, connect: Connect) -> RunStatus:
    if job.inline:
        view.stage("loading torch")
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
