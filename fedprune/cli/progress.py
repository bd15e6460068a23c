"""Where runs are: bars on a terminal, plain lines in a pipe or a CI log.

All that is shown of a run's course is read from the status file in its folder, see
:mod:`fedprune.results.run_status`; a run on another machine is shown by the lines that it logs.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from fedprune.errors import FedpruneError
from fedprune.results.progress import LABELS
from fedprune.results.run_status import PROGRESS, Status, read_status
from fedprune.results.text import printable

_LOOK_SECONDS = 0.4
_QUIET_SECONDS = 30.0
_STEP = 0.1


@dataclass(frozen=True)
class Course:
    """What is told of a run: what happens, its share that is done, None if unknown, and more."""

    head: str
    share: float | None = None
    details: str = ""

    @classmethod
    def of(cls, status: Status) -> "Course":
        """Return what a status file says."""
        share = status.phase_done / status.phase_total if status.phase_total > 1 else None
        head = LABELS.get(status.phase, status.phase)
        return cls(printable(head), share, printable(" · ".join(status.details)))


@dataclass
class _Watched:
    """A run that is looked at: its name, what its status file was before, what was told last."""

    name: str
    before: int
    told: float
    last: Course = Course("")
    row: TaskID | None = None


class ProgressView:
    """Shows the courses of runs to a person while it is used in a `with` statement.

    `sparing`: whether lines that stay tell of a run only after a long silence, as among many runs.
    `clock`: seconds from any origin.
    """

    def __init__(
        self,
        console: Console,
        sparing: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._clock = clock
        self._begun = clock()
        self._sparing = sparing
        self._runs: dict[Path, _Watched] = {}
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._looker = threading.Thread(target=self._keep_looking, name="view", daemon=True)

    def __enter__(self) -> Self:
        """Begin to show."""
        self._looker.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show the last news and end."""
        self._closed.set()
        self._looker.join()
        self._look()

    def watch(self, folder: Path, name: str = "") -> None:
        """Show where the run in a folder is, from when it writes its status file anew."""
        with self._lock:
            self._runs.setdefault(folder, _Watched(name, _stamp(folder / PROGRESS), self._clock()))

    def leave(self, folder: Path) -> None:
        """Show a run no more."""
        with self._lock:
            self._look()
            self._runs.pop(folder, None)

    def stage(self, text: str) -> None:
        """Say what happens while no run tells where it is."""

    def overall(self, done: int, total: int, details: str) -> None:
        """Say how many of many runs are done."""

    def note(self, text: str) -> None:
        """Show a line that stays: a warning or an error."""

    def _show(self, run: _Watched, course: Course) -> None:
        """Show where a run is."""

    def _keep_looking(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        with self._lock:
            for folder, run in self._runs.items():
                if _stamp(folder / PROGRESS) != run.before:
                    with suppress(FedpruneError):
                        self._show(run, Course.of(read_status(folder)))


def progress_view(console: Console, *, sparing: bool = False) -> ProgressView:
    """Return the view that suits ``console``."""
    # Colours can be forced into a pipe; a line that is drawn anew makes no sense there. Some CI
    # services give their jobs a terminal that only a log is made of.
    drawn = console.is_terminal and console.file.isatty() and not console.is_dumb_terminal
    if drawn and not os.environ.get("CI"):
        return LiveView(console)
    return PlainView(console, sparing)


class LiveView(ProgressView):
    """Bars that are drawn anew in place."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        ascii_only = console.options.ascii_only
        self._bars = Progress(
            SpinnerColumn("line" if ascii_only else "dots"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20, table_column=Column(min_width=5)),
            TextColumn("{task.fields[share]}", markup=False),
            TimeElapsedColumn(),
            TextColumn(
                "{task.fields[details]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            transient=True,
            expand=True,
            # An inline run sends what is printed to its own log.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._first = self._bars.add_task("starting", total=None, share="", details="")

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bars.start()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        """Take the bars off the screen."""
        super().__exit__()
        self._bars.stop()

    def leave(self, folder: Path) -> None:
        """Take a run's bar off the screen."""
        with self._lock:
            run = self._runs.pop(folder, None)
            if run is not None and run.row not in (None, self._first):
                self._bars.remove_task(run.row)

    def stage(self, text: str) -> None:
        """Show ``text`` without a bar."""
        self._draw(self._first, Course(printable(text)))

    def overall(self, done: int, total: int, details: str) -> None:
        """Show a bar for all runs, above those of the runs."""
        self._draw(self._first, Course(f"{done} of {total} jobs", done / total, details))

    def note(self, text: str) -> None:
        """Print ``text`` above the bars."""
        self._console.print(Text(text, style="yellow"))

    def _show(self, run: _Watched, course: Course) -> None:
        if run.row is None:
            alone = not run.name
            run.row = self._first if alone else self._bars.add_task("", share="", details="")
        head = f"{run.name}: {course.head}" if run.name else course.head
        self._draw(run.row, Course(head, course.share, course.details))

    def _draw(self, row: TaskID, course: Course) -> None:
        known = course.share is not None
        self._bars.update(
            row,
            description=course.head,
            total=1.0 if known else None,
            completed=course.share or 0.0,
            share=f"{course.share:.0%}" if known else "",
            details=course.details,
            refresh=True,
        )


class PlainView(ProgressView):
    """A line for every new phase, and within one for every tenth of it and every half minute."""

    def stage(self, text: str) -> None:
        """Print ``text``."""
        self.note(printable(text))

    def note(self, text: str) -> None:
        """Print ``text``."""
        # Soft-wrapped: a log is searched by line, so one event stays one line.
        line = f"[{self._clock() - self._begun:6.1f} s] {text}"
        self._console.print(Text(line), soft_wrap=True)

    def _show(self, run: _Watched, course: Course) -> None:
        now, last = self._clock(), run.last
        share, before = course.share or 0.0, last.share or 0.0
        news = course.head != last.head or share == 1.0 != before or share < before
        news = not self._sparing and (news or share - before >= _STEP)
        if news or now - run.told >= _QUIET_SECONDS:
            run.last, run.told = course, now
            percent = "" if course.share is None else f" {course.share:.0%}"
            name = f"{run.name}: " if run.name else ""
            self.note(" · ".join(filter(None, [f"{name}{course.head}{percent}", course.details])))


def _stamp(path: Path) -> int:
    """Return when a file was written, in nanoseconds; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
