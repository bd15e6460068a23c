"""`fedprune sweep`: many jobs, what is done skipped, one table and one page at the end."""

import contextlib
import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from fedprune.cli.job import (
    Ended,
    Job,
    View,
    leave_reason,
    perform,
    plan_job,
    plan_resumption,
    prepare,
)
from fedprune.cli.machine import parallel_jobs, runs_inline, usable_cpus
from fedprune.cli.processes import run_each
from fedprune.cli.progress import ProgressView, progress_view
from fedprune.cli.run import INTERRUPTED, connect
from fedprune.cli.screen import note_console, say
from fedprune.cli.sweep_plan import Sweep, SweepJob, cut_off, finished, plan_sweep, read_sweep
from fedprune.cli.sweep_report import Finished, collect_runs, report_sweep
from fedprune.config import Resumption
from fedprune.errors import ConfigError, FedpruneError
from fedprune.flower.command import Connection, RuntimeFailure
from fedprune.report.sweep import Story
from fedprune.results.environment import source_digest
from fedprune.results.sweep import number_text
from fedprune.results.text import duration_text

_MASKS = "masks.safetensors"
_FILES = (
    *("config.yaml", "failure.json", "results.json", "report.html", "progress.json", ".lock"),
    *("run.log", "superlink.log", _MASKS),
)


@dataclass
class Account:
    """What is known of a sweep's jobs so far, by their places."""

    jobs: list[SweepJob]
    notes: Console  # where what happens is said
    keep_models: bool  # whether jobs keep their pruned models; otherwise only the masks stay
    # place -> the content of its `results.json`
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)  # place -> why it failed
    _begun: float = field(default_factory=time.monotonic)
    _ended: int = 0

    @property
    def todo(self) -> list[int]:
        """The places of the jobs that have neither results nor failed."""
        known = self.results.keys() | self.failures.keys()
        return [place for place in range(len(self.jobs)) if place not in known]

    @property
    def seconds(self) -> float:
        """Seconds since it was opened."""
        return time.monotonic() - self._begun

    def skip_what_is_done(self) -> None:
        """Take in the results that an earlier sweep has left."""
        for place, job in enumerate(self.jobs):
            found = finished(job)
            if found is not None:
                self.results[place] = found
        if self.results:
            self.say(f"{len(self.results)} of {len(self.jobs)} jobs are done already")
            if any(found["code_hash"] != source_digest() for found in self.results.values()):
                self.say("Some were made by another version of fedprune.", "yellow")

    def name(self, place: int) -> str:
        """Return what a person calls a job."""
        return f"job {place + 1} of {len(self.jobs)}"

    def left(self) -> list[str]:
        """Return about how long the rest takes, in words; nothing before there is a measure."""
        if not self.todo or not self._ended:
            return []
        each = self.seconds / self._ended
        return [f"{duration_text(each * len(self.todo))} left"]

    def say(self, text: str, style: str = "") -> None:
        """Print one line of what happens."""
        say(self.notes, text, style)

    def announce(self, place: int) -> None:
        """Say that a job begins, or goes on where it was cut off."""
        job = self.jobs[place]
        again = " goes on" if cut_off(job) else ""
        self.say(f"{self.name(place)}{again}: {job.label}", "bold")

    def settle(self, place: int, ended: Ended) -> None:
        """Take in how a job ended."""
        try:
            found = _results(self.jobs[place], ended)
        except FedpruneError as error:
            if ended.status.state == "finished:failed":
                leave_reason(self.jobs[place].folder, ended.status)
            self.fail(place, str(error))
            return
        if not self.keep_models:
            _drop_model(self.jobs[place].folder)
        self.results[place] = found
        self._ended += 1
        self.say(", ".join([f"{self.name(place)} is done{_headline(found)}", *self.left()]))

    def fail(self, place: int, reason: str) -> None:
        """Note that a job failed, which does not keep the others from going on."""
        self.failures[place] = reason
        self._ended += 1
        self.say(f"{self.name(place)} failed: {reason}", "red")

    def overall(self) -> tuple[int, int, str]:
        """Return how many jobs have ended, of how many, and in words what else there is to say."""
        failed = [f"{len(self.failures)} failed"] if self.failures else []
        total = len(self.jobs)
        return total - len(self.todo), total, " · ".join([*failed, *self.left()])


def run_all(account: Account, at_once: int) -> None:
    """Run all jobs that are not done: those without Flower's runtime so many at once.

    Raises KeyboardInterrupt: it was stopped; the jobs that were running are stopped too.
    """
    if not account.todo:
        return
    inline = all(runs_inline(account.jobs[place].config) for place in account.todo)
    with progress_view(account.notes, sparing=True) as view:
        if not inline:
            _one_by_one(account, view)
            return
        view.stage("loading torch")
        threads = max(1, usable_cpus() // at_once)
        for place, told in run_each(_prepared(account, view), at_once, threads):
            if isinstance(told, str):
                view.note(f"{account.name(place)}: {told}")
                continue
            view.leave(account.jobs[place].folder)
            account.settle(place, told)
            view.overall(*account.overall())


def _one_by_one(account: Account, view: ProgressView) -> None:
    with contextlib.ExitStack() as stack:
        links = _Links(stack)
        for place, job in _prepared(account, view):
            ended = perform(job, view, links.connect)
            if ended.status.state == "interrupted":
                raise KeyboardInterrupt
            view.leave(account.jobs[place].folder)
            account.settle(place, ended)
            view.overall(*account.overall())


def _prepared(account: Account, view: ProgressView) -> Iterator[tuple[int, Job]]:
    """Yield jobs that are ready to run, each when its turn comes."""
    for place in account.todo:
        account.announce(place)
        try:
            planned = _planned(account.jobs[place])
            prepare(planned)
        except FedpruneError as error:
            account.fail(place, str(error))
        else:
            view.watch(planned.folder, account.name(place))
            yield place, planned


def _planned(job: SweepJob) -> Job:
    """Return the job as it is carried out: from where an earlier sweep was cut off, or anew."""
    here, now = Path.cwd(), datetime.now()
    if cut_off(job):
        return plan_resumption(Resumption(job.folder, ()), here, now)
    _clear(job.folder)
    planned = plan_job(job.config, here, now)
    return dataclasses.replace(planned, folder=job.folder, statistics=job.statistics)


class _Links:
    """The SuperLinks of a sweep: each is started when a job first needs it, and shared."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._open: dict[str, Connection] = {}

    @contextlib.contextmanager
    def connect(self, job: Job, view: View) -> Iterator[Connection]:
        """Give the SuperLink that a job asks for."""
        if job.connection not in self._open:
            self._open[job.connection] = self._stack.enter_context(connect(job, view, shared=True))
        yield self._open[job.connection]


def _results(job: SweepJob, ended: Ended) -> dict[str, Any]:
    """Return a job's results, brought into its folder if the ServerApp wrote elsewhere.

    Raises RuntimeFailure: it failed, or they are on another machine.
    """
    if not ended.status.completed:
        raise RuntimeFailure(ended.status.details or f"it ended as {ended.status.state}.")
    if ended.results is None:
        raise RuntimeFailure(
            f"its results are on the SuperLink's machine, in {ended.server_folder or 'its cache'}."
        )
    if ended.folder != job.folder:
        for name in ("config.yaml", "results.json"):
            shutil.copy(ended.folder / name, job.folder / name)
    results: dict[str, Any] = json.loads(ended.results.read_text(encoding="utf-8"))
    return results


def _clear(folder: Path) -> None:
    """Take away what an interrupted, failed or less complete run has left in a job's folder.

    Only what `fedprune` itself writes is touched; anything else stays and stops the job.
    """
    for name in ("blocks", "model", "state", "statistics"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    for partial in folder.glob("*.partial"):
        partial.unlink()


def _drop_model(folder: Path) -> None:
    """Delete the exported model, hundreds of which would fill a disk; its masks stay."""
    # Here, because it loads torch, which most sweeps do in other processes.
    from fedprune.models.export import SIDECAR

    sidecar = folder / "model" / SIDECAR
    if sidecar.is_file():
        sidecar.replace(folder / _MASKS)
    shutil.rmtree(folder / "model", ignore_errors=True)


def _headline(results: dict[str, Any]) -> str:
    found = [
        f"{number_text(values['pruned'])} on {name}"
        for name, values in results["perplexity"].items()
        if values["pruned"] is not None
    ]
    return f": perplexity {', '.join(found)}" if found else ""


def run_sweep(
    overrides: Sequence[str], *, collect: str | None, keep_models: bool, jobs: int | None
) -> int:
    """Run the jobs of a sweep that are not done yet, and show all results.

    `overrides`: as for :func:`fedprune.cli.sweep_plan.read_sweep`. `collect`: a folder whose runs
    are shown, and none is run. `keep_models`: whether jobs keep their pruned models; otherwise only
    the masks stay. `jobs`: how many to run at once; None leaves it to the machine. Returns 0 when
    every job is done, 1 when one failed, 130 when interrupted.
    """
    if collect is not None:
        command = shlex.join(["fedprune", "sweep", "--collect", collect])
        return collect_runs(Console(), Path(collect).expanduser().absolute(), command)
    screen, notes = Console(), note_console()
    sweep, folder = _apart(read_sweep(overrides))
    planned = plan_sweep(sweep, folder)
    account = Account(planned, notes, keep_models)
    account.skip_what_is_done()
    at_once = parallel_jobs([planned[place].config for place in account.todo], jobs)
    try:
        run_all(account, at_once)
    except KeyboardInterrupt:
        account.say(f"Interrupted; the same command goes on from here. Results so far: {folder}")
        return INTERRUPTED
    command = shlex.join(["fedprune", "sweep", *overrides])
    story = Story(sweep.title, command, sweep.axes, account.seconds)
    report_sweep(screen, folder, story, _jobs(account, sweep.keys))
    for place, reason in sorted(account.failures.items()):
        account.say(f"failed: {planned[place].label}: {reason}", "red")
        account.say(f"        {planned[place].folder}", "red")
    if not account.failures:
        return 0
    count = f"{len(account.failures)} of {len(planned)} jobs failed"
    account.say(f"{count}; the same command tries them again.", "red")
    return 1


def _jobs(account: Account, keys: Sequence[str]) -> list[Finished]:
    results, failures = account.results, account.failures
    return [
        Finished(
            {key: job.settings.get(key, "") for key in keys},
            job.label,
            job.folder,
            results.get(place),
            results.get(job.baseline),
            failures.get(place, ""),
        )
        for place, job in enumerate(account.jobs)
    ]


def _apart(sweep: Sweep) -> tuple[Sweep, Path]:
    """Return a sweep without the folder that it names, and that folder."""
    if "output_dir" in sweep.grid or any("output_dir" in link for link in sweep.linked):
        raise ConfigError("`output_dir` is the folder of the whole sweep and takes one value.")
    chosen = [text for text in sweep.fixed if text.startswith("output_dir=")]
    name = chosen[-1].partition("=")[2].strip("'\"") if chosen else ""
    folder = Path(name).expanduser() if name else Path("runs", f"sweep-{sweep.name}")
    kept = tuple(text for text in sweep.fixed if text not in chosen)
    return dataclasses.replace(sweep, fixed=kept), Path.cwd() / folder
