"""A job inside this process: the real ServerApp and ClientApp without Flower's runtime.

It starts in no time, runs clients one after another and shares one model among them.
"""

import contextlib
import io
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping

from flwr.common.logger import FLOWER_LOGGER

from fedprune.errors import FedpruneError
from fedprune.flower.command import RunStatus, Scalar
from fedprune.flower.inline import InlineGrid, inline_run_id
from fedprune.flower.messages import process_identity
from fedprune.logs import JsonFormatter, json_wanted

TakeLine = Callable[[str], None]


def run_inline(run_config: Mapping[str, Scalar], clients: int, take: TakeLine) -> RunStatus:
    """Run a job in this process and return how it ended.

    `take`: gets every line that the apps log or print.
    """

    def work(run_id: int) -> None:
        # Here, because they load torch, which a job on Flower's runtime does in other processes.
        from client_app.app import app
        from server_app.job import run_job

        run_job(InlineGrid(app, clients, run_id), run_config, run_id)

    return _in_this_process(work, take)


def solve_inline(statistics: str, run_config: Mapping[str, Scalar], take: TakeLine) -> RunStatus:
    """Make a model of collected statistics in this process and return how that ended.

    `run_config`, `take`: as for :func:`run_inline`.
    """

    def work(run_id: int) -> None:
        from fedprune.methods.statistics_folder import StatisticsFolder
        from server_app.job import run_job

        run_job(StatisticsFolder.open(statistics), run_config, run_id)

    return _in_this_process(work, take)


def _in_this_process(work: Callable[[int], None], take: TakeLine) -> RunStatus:
    run_id = inline_run_id()
    try:
        with process_identity(run_id), _output_to(take):
            work(run_id)
    except FedpruneError as error:
        take(f"{type(error).__name__}: {error}")
        return RunStatus("finished:failed", str(error))
    except Exception as error:
        for line in traceback.format_exc().splitlines():
            take(line)
        return RunStatus("finished:failed", f"{type(error).__name__}: {error}")
    return RunStatus("finished:completed")


class _Lines(io.TextIOBase):
    """A text file that hands on whole lines."""

    def __init__(self, take: TakeLine) -> None:
        self._take = take
        self._rest = ""

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str, /) -> int:
        """Hand on the lines that are whole with ``text``."""
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line:
                self._take(line)
        return len(text)


class _LogLines(logging.Handler):
    """Hands on log records as lines that look like Flower's, or in JSON."""

    def __init__(self, take: TakeLine) -> None:
        super().__init__()
        self._take = take
        self._json = json_wanted()
        if self._json:
            self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on one record."""
        text = self.format(record)
        if not self._json:
            text = f"{record.levelname} : {text}"
        elif not record.getMessage().strip():
            return
        for line in text.splitlines():
            self._take(line)


@contextlib.contextmanager
def _output_to(take: TakeLine) -> Iterator[None]:
    """Send to ``take`` what Flower's logger and all printing would put on the screen."""
    handlers, level = FLOWER_LOGGER.handlers[:], FLOWER_LOGGER.level
    propagate = FLOWER_LOGGER.propagate
    printed = _Lines(take)
    FLOWER_LOGGER.handlers[:] = [_LogLines(take)]
    FLOWER_LOGGER.setLevel(logging.INFO)
    FLOWER_LOGGER.propagate = False  # a host program's handlers would show every line once more
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    finally:
        FLOWER_LOGGER.handlers[:] = handlers
        FLOWER_LOGGER.setLevel(level)
        FLOWER_LOGGER.propagate = propagate
