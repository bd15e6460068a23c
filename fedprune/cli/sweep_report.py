"""What a sweep ends with: tables for the screen and for files, plots, and one page."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table

from fedprune import __version__
from fedprune.reporting.byte_plot import plot_bytes
from fedprune.reporting.html.page import write_report
from fedprune.reporting.html.sweep_page import Run, SweepFacts, render_sweep
from fedprune.reporting.plots import plot_sweep, plot_time
from fedprune.reporting.sweep import (
    SEED,
    Axes,
    Outcome,
    Pivot,
    Row,
    all_pivots,
    csv_text,
    datasets,
    make_row,
    markdown,
)

PAGE = "sweep.html"


@dataclasses.dataclass(frozen=True)
class Finished:
    """One job of a sweep, whatever became of it.

    Attributes
    ----------
    settings : Mapping
        Swept key -> value.
    label : str
        What a person calls it.
    folder : Path
        Its folder, below the sweep's.
    results : Mapping or None
        The content of its `results.json`; None where there is none.
    baseline : Mapping or None
        That of the job that measured its baselines.
    failure : str
        Why it failed; "" if it did not.
    """

    settings: Mapping[str, str]
    label: str
    folder: Path
    results: Mapping[str, Any] | None
    baseline: Mapping[str, Any] | None
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class Story:
    """What is said of a sweep as a whole: its name, how to do it again, its table, its time."""

    title: str
    command: str
    axes: Axes
    seconds: float


def report_sweep(screen: Console, folder: Path, story: Story, jobs: Sequence[Finished]) -> None:
    """Write tables, plots and pages into a sweep's folder, and show the perplexities.

    Nothing is written where no job has results.

    Parameters
    ----------
    screen : Console
        Where the tables go.
    folder : Path
        The sweep's.
    story : Story
        What is said of it.
    jobs : sequence of Finished
        All its jobs.
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
        screen.print(_rich(pivot))
    if measured:
        for plot in (plot_sweep, plot_bytes, plot_time):
            plot(rows, story.axes, story.title, folder)
    facts = SweepFacts(**_fields(story), runs=runs, pivots=pivots, version=__version__)
    (folder / PAGE).write_text(render_sweep(facts), encoding="utf-8")
    screen.print(str(folder / PAGE), soft_wrap=True, highlight=False)


def _fields(story: Story) -> dict[str, Any]:
    return {one.name: getattr(story, one.name) for one in dataclasses.fields(story)}


def _run(job: Finished, folder: Path) -> Run:
    """Return what the page says of a job, and write the job's own report."""
    if job.results is None:
        return Run(job.label, "", None, job.failure)
    report = write_report(job.folder).relative_to(folder)
    row = make_row(Outcome(job.settings, job.results, job.baseline))
    return Run(job.label, report.as_posix(), row)


def _document(story: Story, rows: Sequence[Row], pivots: Sequence[Pivot], planned: int) -> str:
    seeds = len({row[SEED] for row in rows})
    done = f"{len(rows)} runs" if len(rows) == planned else f"{len(rows)} of {planned} runs"
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    head = [f"# {story.title}", "", f"    {story.command}", "", f"{done}; {spread}.", ""]
    return "\n".join([*head, *map(markdown, pivots)])


def _rich(pivot: Pivot) -> Table:
    table = Table(title=pivot.title, title_justify="left")
    for place, name in enumerate(pivot.header):
        justify: JustifyMethod = "right" if place >= pivot.labels else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for line in pivot.lines:
        table.add_row(*line)
    return table
