"""`fedprune run`: submit a job, show where it is, and tell by the exit code how it ended."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from fedprune.cli.flower import Connection
from fedprune.cli.inputs import check_inputs
from fedprune.cli.job import Job, named_connection, plan_job
from fedprune.cli.perform import Ended, perform, prepare
from fedprune.cli.progress import ProgressView, progress_view
from fedprune.cli.superlink import private_superlink
from fedprune.config import config_from_overrides
from fedprune.reporting.table import render

INTERRUPTED = 130


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
    screen, notes = Console(), note_console()
    config = config_from_overrides(overrides)
    check_inputs(config)
    job = plan_job(config, Path.cwd(), datetime.now())
    prepare(job)
    with progress_view(notes) as view:
        ended = perform(job, view, connect)
    if ended.status.state == "interrupted":
        text = f"Interrupted; the run is stopped. Logs: {job.folder}"
        notes.print(text, soft_wrap=True, highlight=False)
        return INTERRUPTED
    if not ended.status.completed:
        show_failure(notes, ended, job)
        return 1
    return _show_results(screen, notes, job, ended)


def note_console() -> Console:
    """Return the console for everything but results."""
    # The stream itself, not the name: an inline run sends what is printed meanwhile to its log.
    return Console(file=sys.stderr)


@contextlib.contextmanager
def connect(job: Job, view: ProgressView) -> Iterator[Connection]:
    """Give the SuperLink that a job asks for: the user's, or one of its own."""
    if job.connection:
        yield named_connection(job.connection)
        return
    view.stage("starting Flower's SuperLink")
    with private_superlink() as connection:
        yield connection


def show_failure(notes: Console, ended: Ended, job: Job) -> None:
    """Print what went wrong and where there is more; the end of the log where it is unforeseen."""
    details = _own_reason(job.folder)
    if not details:
        details = ended.status.details
        if ended.tail:
            notes.print(ended.tail, style="dim", markup=False, highlight=False, soft_wrap=True)
    state = ended.status.state.removeprefix("finished:")
    notes.print(
        f"The run {'was stopped' if state == 'stopped' else 'failed'}. {details}".rstrip(),
        style="red",
        markup=False,
        soft_wrap=True,
    )
    notes.print(f"Logs: {job.folder}", soft_wrap=True, highlight=False)


def _own_reason(folder: Path) -> str:
    """Return why the ServerApp gave up, where it did so on purpose."""
    try:
        failure = json.loads((folder / "failure.json").read_text(encoding="utf-8"))
        return str(failure["reason"])
    except (OSError, ValueError, KeyError):
        return ""


def _show_results(screen: Console, notes: Console, job: Job, ended: Ended) -> int:
    if ended.results is not None:
        screen.print(render(json.loads(ended.results.read_text(encoding="utf-8"))))
        screen.print(str(ended.folder), soft_wrap=True, highlight=False)
        return 0
    if job.connection:
        place = f", in {ended.server_folder}" if ended.server_folder else ""
        screen.print(f"The results are on the SuperLink's machine{place}.", soft_wrap=True)
        return 0
    missing = ended.folder / "results.json"
    notes.print(
        f"The run ended without '{missing}'. Logs: {job.folder}", style="red", soft_wrap=True
    )
    return 1
