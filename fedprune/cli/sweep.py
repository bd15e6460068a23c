"""`fedprune sweep`: many jobs, what is done skipped, one table and one page at the end."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedprune.cli.capacity import parallel_jobs
from fedprune.cli.run import INTERRUPTED, note_console
from fedprune.cli.sweep_plan import finished, plan_sweep
from fedprune.cli.sweep_report import Finished, Story, report_sweep
from fedprune.cli.sweep_run import Account, run_all
from fedprune.cli.sweep_spec import Sweep, read_sweep
from fedprune.errors import ConfigError
from fedprune.reporting.sources import source_digest


def run_sweep(arguments: Sequence[str], *, keep_models: bool, jobs: int | None = None) -> int:
    """Run the jobs of a sweep that are not done yet, and show all results.

    Parameters
    ----------
    arguments : sequence of str
        As for :func:`fedprune.cli.sweep_spec.read_sweep`.
    keep_models : bool
        Whether jobs keep their pruned models; otherwise only the masks stay.
    jobs : int, optional
        How many to run at once; as many as the machine bears if left out.

    Returns
    -------
    int
        0 when every job is done, 1 when one failed, 130 when interrupted.

    Raises
    ------
    ConfigError
        The sweep or one of its jobs is wrong; nothing has been started.
    """
    screen, notes = Console(), note_console()
    sweep = read_sweep(arguments)
    folder = _folder(sweep)
    planned = plan_sweep(_without_folder(sweep), folder)
    account = Account(planned, notes, keep_models)
    _skip_what_is_done(account)
    at_once = parallel_jobs([planned[place].config for place in account.todo], jobs)
    try:
        run_all(account, at_once)
    except KeyboardInterrupt:
        account.say(f"Interrupted; the same command goes on from here. Results so far: {folder}")
        return INTERRUPTED
    command = shlex.join(["fedprune", "sweep", *arguments])
    story = Story(sweep.title, command, sweep.axes, account.seconds)
    report_sweep(screen, folder, story, _jobs(account))
    for place, reason in sorted(account.failures.items()):
        account.say(f"failed: {planned[place].label}: {reason}", "red")
        account.say(f"        {planned[place].folder}", "red")
    if not account.failures:
        return 0
    count = f"{len(account.failures)} of {len(planned)} jobs failed"
    account.say(f"{count}; the same command tries them again.", "red")
    return 1


def _skip_what_is_done(account: Account) -> None:
    for place, job in enumerate(account.jobs):
        found = finished(job)
        if found is not None:
            account.results[place] = found
    if account.results:
        account.say(f"{len(account.results)} of {len(account.jobs)} jobs are done already")
        if any(found["code_hash"] != source_digest() for found in account.results.values()):
            account.say("Some were made by another version of fedprune.", "yellow")


def _jobs(account: Account) -> list[Finished]:
    results, failures = account.results, account.failures
    return [
        Finished(
            job.settings,
            job.label,
            job.folder,
            results.get(place),
            results.get(job.baseline),
            failures.get(place, ""),
        )
        for place, job in enumerate(account.jobs)
    ]


def _folder(sweep: Sweep) -> Path:
    chosen = [text.partition("=")[2] for text in sweep.fixed if text.startswith("output_dir=")]
    name = chosen[-1].strip("'\"") if chosen else ""
    return Path.cwd() / (Path(name).expanduser() if name else Path("runs", f"sweep-{sweep.name}"))


def _without_folder(sweep: Sweep) -> Sweep:
    if "output_dir" in sweep.grid or any("output_dir" in link for link in sweep.linked):
        raise ConfigError("`output_dir` is the folder of the whole sweep and takes one value.")
    kept = tuple(text for text in sweep.fixed if not text.startswith("output_dir="))
    return dataclasses.replace(sweep, fixed=kept)
