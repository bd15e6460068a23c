"""`fedprune run`: submit a job, show where it is, and tell by the exit code how it ended."""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from fedprune.cli.job import (
    Ended,
    Job,
    View,
    check_inputs,
    leave_reason,
    named_connection,
    perform,
    plan_job,
    plan_resumption,
    prepare,
)
from fedprune.cli.progress import progress_view
from fedprune.cli.screen import note_console, say
from fedprune.config import config_from_overrides, find_resumption
from fedprune.flower.command import Connection
from fedprune.flower.superlink import private_superlink
from fedprune.results.read import damage_told, failure_reason, read_results
from fedprune.results.tables import render

INTERRUPTED = 130


def run_job(overrides: Sequence[str]) -> int:
    """Run a federated pruning job to its end and return the exit code.

    Returns 0 when it is done, 1 when it failed, 130 when it was interrupted. Raises ConfigError:
    the configuration is wrong; nothing has been started.
    """
    resumed = find_resumption(overrides)
    if resumed is not None and (resumed.folder / "results.json").is_file():
        say(note_console(), f"The run is finished: {resumed.folder}")
        _show(Console(), resumed.folder)
        return 0
    if resumed is not None:
        return carry_out(plan_resumption(resumed, Path.cwd(), datetime.now()))
    config = config_from_overrides(overrides)
    check_inputs(config)
    return carry_out(plan_job(config, Path.cwd(), datetime.now()))


def carry_out(job: Job) -> int:
    """Carry a planned job out, show its course and its results, and return the exit code."""
    screen, notes = Console(), note_console()
    prepare(job)
    with progress_view(notes) as view:
        ended = perform(job, view, connect)
    if ended.status.state == "interrupted":
        say(notes, f"Interrupted; the run is stopped. Logs: {job.folder}")
        _show_way_on(notes, job, ended)
        return INTERRUPTED
    if not ended.status.completed:
        show_failure(notes, ended, job)
        if not failure_reason(job.folder):  # which says itself how to go on
            _show_way_on(notes, job, ended)
            if not job.connection:
                leave_reason(job.folder, ended.status)
        return 1
    return _show_results(screen, notes, job, ended)


@contextlib.contextmanager
def connect(job: Job, view: View, shared: bool = False) -> Iterator[Connection]:
    """Give the SuperLink that a job asks for: the user's, or one of its own.

    Jobs that share one may ask for Rays of different sizes, so Flower starts and ends these.
    """
    if job.connection:
        yield named_connection(job.connection)
        return
    view.stage("starting Flower's SuperLink")
    cpus = 0 if shared else int(job.federation["init-args-num-cpus"])
    with private_superlink(ray_cpus=cpus) as connection:
        yield connection


def show_failure(notes: Console, ended: Ended, job: Job) -> None:
    """Print what went wrong and where there is more; the end of the log where it is unforeseen."""
    details = failure_reason(job.folder)
    if not details:
        details = ended.status.details
        if ended.tail:
            say(notes, ended.tail, "dim")
    state = ended.status.state.removeprefix("finished:")
    ended_as = "was stopped" if state == "stopped" else "failed"
    say(notes, f"The run {ended_as}. {details}".rstrip(), "red")
    say(notes, f"Logs: {job.folder}")


def _show_way_on(notes: Console, job: Job, ended: Ended) -> None:
    """Say how to go on, where the ServerApp came so far that there is something to go on with."""
    if job.statistics:
        return  # it begins anew, and takes no time
    if (job.folder / "state").is_dir():
        say(notes, f"Go on with the run: fedprune run resume={job.folder}")
    elif job.connection and "ServerApp" not in ended.status.details:  # which says itself
        say(
            notes,
            "Go on with the run, where FOLDER is its `output_dir` on the SuperLink's machine: "
            f"fedprune run resume=FOLDER federation.connection={job.connection}",
        )


def _show(screen: Console, folder: Path) -> None:
    results = read_results(folder)
    with damage_told(folder):
        screen.print(render(results))
    say(screen, str(folder))


def _show_results(screen: Console, notes: Console, job: Job, ended: Ended) -> int:
    if ended.results is not None:
        _show(screen, ended.folder)
        return 0
    if job.connection:
        place = f", in {ended.server_folder}" if ended.server_folder else ""
        say(screen, f"The results are on the SuperLink's machine{place}.")
        return 0
    missing = ended.folder / "results.json"
    say(notes, f"The run ended without '{missing}'. Logs: {job.folder}", "red")
    return 1
