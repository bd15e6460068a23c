"""What a sweep ends with, and ``--collect``: tables, plots and one page of many runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fedprune import __version__
from fedprune.cli.screen import say
from fedprune.cli.sweep_plan import baseline_key
from fedprune.config.keys import flatten
from fedprune.config.suggest import spelled
from fedprune.errors import ConfigError, FedpruneError
from fedprune.report.figures import plot_bytes, plot_frontier, plot_sweep, plot_time
from fedprune.report.page import render_sweep, write_report
from fedprune.report.sweep import Run, Story, SweepFacts
from fedprune.results.read import damage_told, failure_reason, read_config, read_results
from fedprune.results.sweep import (
    EXCESS,
    SEED,
    SPARSITY,
    Axes,
    Pivot,
    Row,
    all_pivots,
    csv_text,
    datasets,
    make_row,
    markdown,
)
from fedprune.results.tables import pivot_table

PAGE = "sweep.html"


@dataclass(frozen=True)
class Finished:
    """One job of a sweep, whatever became of it."""

    settings: Mapping[str, str]  # swept key -> value
    label: str  # what a person calls it
    folder: Path  # its folder, below the sweep's
    results: Mapping[str, Any] | None  # the content of its `results.json`; None where there is none
    baseline: Mapping[str, Any] | None  # that of the job that measured its baselines
    failure: str = ""  # why it failed; "" if it did not


def report_sweep(screen: Console, folder: Path, story: Story, jobs: Sequence[Finished]) -> None:
    """Write tables, plots and pages into a sweep's folder, and show the perplexities.

    Nothing is written where no job has results.
    """
    runs = [_run(job, folder) for job in jobs]
    rows = [run.row for run in runs if run.row is not None]
    if not rows:
        return
    pivots = all_pivots(rows, story.axes)
    (folder / "table.csv").write_text(csv_text(rows), encoding="utf-8")
    text = _document(story, rows, pivots, len(jobs))
    (folder / "table.md").write_text(text, encoding="utf-8")
    measured = datasets(rows)
    for pivot in pivots[: len(measured)] or pivots:
        screen.print(pivot_table(pivot))
    if measured:
        for plot in (plot_sweep, plot_bytes, plot_time):
            plot(rows, story.axes, story.title, folder)
    if any(row.get(EXCESS) is not None for row in rows):
        plot_frontier(rows, story.axes, story.title, folder)
    facts = SweepFacts(story, runs, pivots, __version__)
    (folder / PAGE).write_text(render_sweep(facts), encoding="utf-8")
    say(screen, str(folder / PAGE))


def checked_results(folder: Path) -> Mapping[str, Any]:
    """Return a run's results, of which a table can be made.

    Raises FedpruneError if they are damaged.
    """
    results = read_results(folder)
    with damage_told(folder):
        make_row({}, results)
        write_report(folder)
    return results


def _run(job: Finished, folder: Path) -> Run:
    """Return what the page says of a job, and write the job's own report."""
    if job.results is None:
        return Run(job.label, "", None, job.failure)
    report = write_report(job.folder).relative_to(folder)
    row = make_row(job.settings, job.results, job.baseline)
    return Run(job.label, report.as_posix(), row)


def _document(story: Story, rows: Sequence[Row], pivots: Sequence[Pivot], planned: int) -> str:
    seeds = len({row[SEED] for row in rows})
    done = f"{len(rows)} runs" if len(rows) == planned else f"{len(rows)} of {planned} runs"
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    head = [f"# {story.title}", "", f"    {story.command}", "", f"{done}; {spread}.", ""]
    return "\n".join([*head, *map(markdown, pivots)])


_NAME = ".name"
_NO_SETTING = (
    "output_dir",
    "evaluation.local_only",
    "evaluation.centralized",
    "evaluation.no_client",
)


def collect_runs(screen: Console, folder: Path, command: str, seconds: float = 0.0) -> int:
    """Write the tables, plots and the page of all runs in a folder; return the exit code.

    `command`: what the page says of how the runs were made. `seconds`: how long they took together,
    where that is known. Returns 0 when every run is done, 1 when one failed.
    """
    runs = [_Run(path) for path in _folders(folder)]
    if not any(run.results for run in runs):
        raise ConfigError(
            f"--collect needs a folder with finished runs, there is none in '{folder}'."
        )
    keys = _telling([run.values for run in runs])
    columns = tuple(key for key in keys if key == SPARSITY)
    rows = tuple(key for key in keys if key not in (*columns, SEED))
    settings = [{_short(key): run.values.get(key, "") for key in keys} for run in runs]
    # baseline key -> the results of the first run that measured those baselines
    carriers = {baseline_key(run.config): run.results for run in reversed(runs) if run.results}
    jobs = [
        Finished(
            settings=found,
            label=" ".join(f"{k}={v}" for k, v in found.items() if v) or run.folder.name,
            folder=run.folder,
            results=run.results,
            baseline=carriers.get(baseline_key(run.config)),
            failure=run.failure,
        )
        for run, found in zip(runs, settings, strict=True)
    ]
    axes = Axes(tuple(map(_short, rows)), columns)
    report_sweep(screen, folder, Story(folder.name, command, axes, seconds), jobs)
    return 1 if any(job.results is None for job in jobs) else 0


class _Run:
    """A run's folder, read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        plain = flatten(self.config).items()
        self.values = {key: _text(value) for key, value in plain if key not in _NO_SETTING}
        self.results: Mapping[str, Any] | None = None
        self.failure = ""
        if (folder / "results.json").exists():
            try:
                self.results = checked_results(folder)
            except FedpruneError as error:
                self.failure = str(error)
        else:
            self.failure = failure_reason(folder) or "it has not ended."


def _folders(folder: Path) -> Iterator[Path]:
    """Yield the runs' folders, `2` before `10`."""
    marks = ("results.json", "failure.json", "run.log")
    found = [
        path.parent
        for path in folder.rglob("config.yaml")
        if ".hydra" not in path.parts and any(path.with_name(name).is_file() for name in marks)
    ]
    yield from sorted(found, key=lambda path: (len(path.name), str(path)))


def _telling(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys that tell the runs apart, without those that follow from others.

    The choice of a group changes many keys at once; its name is enough.
    """
    keys = dict.fromkeys(key for run in runs for key in run)
    varying = [key for key in keys if len({run.get(key) for run in runs}) > 1]
    first = [SPARSITY, SEED, *(key for key in varying if key.endswith(_NAME))]
    order = dict.fromkeys([*(key for key in first if key in varying), *varying])
    kept: list[str] = []
    groups = 1
    for key in order:
        told = len({tuple(run.get(name) for name in (*kept, key)) for run in runs})
        if told > groups:
            kept.append(key)
            groups = told
    return sorted(kept, key=lambda key: key == SEED)


def _short(key: str) -> str:
    return key.removesuffix(_NAME)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else spelled(value)
