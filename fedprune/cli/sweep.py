"""`fedprune sweep`: many jobs one after another, what is done skipped, one table at the end."""

import contextlib
import dataclasses
import json
import shlex
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table

from fedprune.cli.flower import Connection, RuntimeFailure
from fedprune.cli.job import Job, plan_job
from fedprune.cli.perform import Ended, perform, prepare
from fedprune.cli.progress import ProgressView, progress_view
from fedprune.cli.run import INTERRUPTED, connect, note_console
from fedprune.cli.sweep_plan import SweepJob, finished, plan_sweep
from fedprune.cli.sweep_spec import Sweep, read_sweep
from fedprune.errors import ConfigError, FedpruneError
from fedprune.reporting.byte_plot import plot_bytes
from fedprune.reporting.plots import plot_sweep
from fedprune.reporting.sources import source_digest
from fedprune.reporting.sweep import (
    Outcome,
    Pivot,
    Row,
    all_pivots,
    csv_text,
    datasets,
    make_row,
    markdown,
    number_text,
)

_MASKS = "masks.safetensors"


@dataclass
class _State:
    """What is known of a sweep's jobs so far, by their places."""

    jobs: list[SweepJob]
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def left(self) -> str:
        """Return about how long the rest takes, in words."""
        todo = len(self.jobs) - len(self.results) - len(self.failures)
        if not todo or not self.seconds:
            return ""
        rest = timedelta(seconds=round(todo * statistics.fmean(self.seconds)))
        return f", about {rest} left"


def run_sweep(arguments: Sequence[str], *, keep_models: bool) -> int:
    """Run the jobs of a sweep that are not done yet, and show all results.

    Parameters
    ----------
    arguments : sequence of str
        As for :func:`fedprune.cli.sweep_spec.read_sweep`.
    keep_models : bool
        Whether jobs keep their pruned models; otherwise only the masks stay.

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
    jobs = plan_sweep(_without_folder(sweep), folder)
    state = _State(jobs)
    for place, job in enumerate(jobs):
        found = finished(job)
        if found is not None:
            state.results[place] = found
    if state.results:
        _say(notes, f"{len(state.results)} of {len(jobs)} jobs are done already")
        if any(found["code_hash"] != source_digest() for found in state.results.values()):
            _say(notes, "Some were made by another version of fedprune.", "yellow")
    try:
        _run_all(state, notes, keep_models=keep_models)
    except KeyboardInterrupt:
        _say(notes, f"Interrupted; the same command goes on from here. Results so far: {folder}")
        return INTERRUPTED
    _report(screen, notes, state, sweep, folder, shlex.join(["fedprune", "sweep", *arguments]))
    for place, reason in state.failures.items():
        _say(notes, f"failed: {jobs[place].label}: {reason}", "red")
        _say(notes, f"        {jobs[place].folder}", "red")
    if not state.failures:
        return 0
    count = f"{len(state.failures)} of {len(jobs)} jobs failed"
    _say(notes, f"{count}; the same command tries them again.", "red")
    return 1


def _run_all(state: _State, notes: Console, *, keep_models: bool) -> None:
    with contextlib.ExitStack() as stack:
        links = _Links(stack)
        for place, job in enumerate(state.jobs):
            if place in state.results:
                continue
            number = f"job {place + 1} of {len(state.jobs)}"
            _say(notes, f"{number}: {job.label}", "bold")
            begun = time.monotonic()
            try:
                found = _run_one(job, notes, number, links)
            except FedpruneError as error:
                state.failures[place] = str(error)
                _say(notes, f"{number} failed: {error}", "red")
                continue
            if not keep_models:
                _drop_model(job.folder)
            state.results[place] = found
            state.seconds.append(time.monotonic() - begun)
            _say(notes, f"{number} is done{_headline(found)}{state.left()}")


class _Links:
    """The SuperLinks of a sweep: each is started when a job first needs it, and shared.

    Parameters
    ----------
    stack : ExitStack
        Ends them.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._open: dict[str, Connection] = {}

    @contextlib.contextmanager
    def connect(self, job: Job, view: ProgressView) -> Iterator[Connection]:
        """Give the SuperLink that a job asks for."""
        if job.connection not in self._open:
            self._open[job.connection] = self._stack.enter_context(connect(job, view))
        yield self._open[job.connection]


def _run_one(job: SweepJob, notes: Console, number: str, links: _Links) -> dict[str, Any]:
    """Run one job and return its results.

    Raises
    ------
    FedpruneError
        It failed.
    KeyboardInterrupt
        It was stopped.
    """
    _clear(job.folder)
    planned = plan_job(job.config, Path.cwd(), datetime.now())
    planned = dataclasses.replace(planned, folder=job.folder)
    prepare(planned)
    with progress_view(notes, number) as view:
        ended = perform(planned, view, links.connect)
    if ended.status.state == "interrupted":
        raise KeyboardInterrupt
    if not ended.status.completed:
        raise RuntimeFailure(ended.status.details or f"it {ended.status.state}.")
    return _collect(job, ended)


def _collect(job: SweepJob, ended: Ended) -> dict[str, Any]:
    """Return the results, brought into the job's folder if the ServerApp wrote elsewhere."""
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
    for name in ("blocks", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    ours = ("config.yaml", "failure.json", "results.json", "run.log", "superlink.log", _MASKS)
    for name in ours:
        (folder / name).unlink(missing_ok=True)
    for partial in folder.glob("*.partial"):
        partial.unlink()


def _drop_model(folder: Path) -> None:
    """Delete the exported model, hundreds of which would fill a disk; its masks stay."""
    # Here, because it loads torch, which a sweep on Flower's runtime does in other processes.
    from fedprune.models.export import SIDECAR

    sidecar = folder / "model" / SIDECAR
    if sidecar.is_file():
        sidecar.replace(folder / _MASKS)
    shutil.rmtree(folder / "model", ignore_errors=True)


def _folder(sweep: Sweep) -> Path:
    chosen = [text.partition("=")[2] for text in sweep.fixed if text.startswith("output_dir=")]
    name = chosen[-1].strip("'\"") if chosen else ""
    return Path.cwd() / (Path(name).expanduser() if name else Path("runs", f"sweep-{sweep.name}"))


def _without_folder(sweep: Sweep) -> Sweep:
    if "output_dir" in sweep.grid or any("output_dir" in link for link in sweep.linked):
        raise ConfigError("`output_dir` is the folder of the whole sweep and takes one value.")
    kept = tuple(text for text in sweep.fixed if not text.startswith("output_dir="))
    return dataclasses.replace(sweep, fixed=kept)


def _report(
    screen: Console, notes: Console, state: _State, sweep: Sweep, folder: Path, command: str
) -> None:
    """Write tables and plots, and show the perplexities."""
    rows = sweep_rows(state.jobs, state.results)
    if not rows:
        return
    pivots = all_pivots(rows, sweep.axes)
    (folder / "table.csv").write_text(csv_text(rows), encoding="utf-8")
    (folder / "table.md").write_text(
        _document(sweep, rows, pivots, command, len(state.jobs)), encoding="utf-8"
    )
    measured = datasets(rows)
    for pivot in pivots[: len(measured)] or pivots:
        screen.print(_rich(pivot))
    if measured:
        plot_sweep(rows, sweep.axes, sweep.title, folder)
        plot_bytes(rows, sweep.axes, sweep.title, folder)
    screen.print(str(folder), soft_wrap=True, highlight=False)


def sweep_rows(jobs: Sequence[SweepJob], results: dict[int, dict[str, Any]]) -> list[Row]:
    """Return a row for every job that is done, with the baselines that belong to it."""
    return [
        make_row(Outcome(job.settings, results[place], results.get(job.baseline)))
        for place, job in enumerate(jobs)
        if place in results
    ]


def _document(
    sweep: Sweep, rows: Sequence[Row], pivots: Sequence[Pivot], command: str, planned: int
) -> str:
    seeds = len({row["seed"] for row in rows})
    done = f"{len(rows)} runs" if len(rows) == planned else f"{len(rows)} of {planned} runs"
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    head = [f"# {sweep.title}", "", f"    {command}", "", f"{done}; {spread}.", ""]
    return "\n".join([*head, *map(markdown, pivots)])


def _rich(pivot: Pivot) -> Table:
    table = Table(title=pivot.title, title_justify="left")
    for place, name in enumerate(pivot.header):
        justify: JustifyMethod = "right" if place >= pivot.labels else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for line in pivot.lines:
        table.add_row(*line)
    return table


def _headline(results: dict[str, Any]) -> str:
    found = [
        f"{number_text(values['pruned'])} on {name}"
        for name, values in results["perplexity"].items()
        if values["pruned"] is not None
    ]
    return f": perplexity {', '.join(found)}" if found else ""


def _say(notes: Console, text: str, style: str = "") -> None:
    notes.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
