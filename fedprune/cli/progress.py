"""Where a run is: one live line on a terminal, plain lines in a pipe, a CI log or a narrow window.

Both are driven by the lines that the ServerApp logs, see :mod:`fedprune.reporting.progress`.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from fedprune.reporting.progress import Progress

_NARROWEST_BAR = 60
_QUIET_SECONDS = 10.0
_STEP = 0.1
_LABELS = {
    "connect": "connecting",
    "handshake": "asking nodes who they are",
    "prune": "pruning",
    "evaluate": "evaluating",
    "export": "writing the model",
    "done": "done",
}


class ProgressView(Protocol):
    """Shows a run's course to a person."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the live line off the screen."""

    def stage(self, text: str) -> None:
        """Say what happens while the ServerApp does not speak yet."""

    def update(self, progress: Progress) -> None:
        """Show how far the run is."""

    def note(self, text: str) -> None:
        """Show a line that stays: a warning or an error."""


def progress_view(console: Console, name: str = "") -> ProgressView:
    """Return the view that suits ``console``; ``name`` tells one of several runs."""
    prefix = f"{name}: " if name else ""
    if console.is_terminal and not console.is_dumb_terminal and console.width >= _NARROWEST_BAR:
        return LiveView(console, prefix)
    return PlainView(console, prefix=prefix)


class LiveView:
    """One line with a bar that is drawn anew in place.

    Parameters
    ----------
    console : Console
        A terminal.
    prefix : str
        Stands before what happens.
    """

    def __init__(self, console: Console, prefix: str = "") -> None:
        self._prefix = prefix
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[share]:>5}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, share="", detail="")

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the line off the screen."""
        self._bar.stop()

    def stage(self, text: str) -> None:
        """Show ``text`` with a bar of unknown length."""
        text = f"{self._prefix}{text}"
        self._bar.update(self._task, description=text, total=None, share="", detail="")

    def update(self, progress: Progress) -> None:
        """Show phase, bar and detail."""
        total = progress.total or None
        self._bar.update(
            self._task,
            description=f"{self._prefix}{_LABELS[progress.phase]}",
            completed=progress.done,
            total=total,
            share=f"{progress.done / total:.0%}" if total else "",
            detail=progress.detail,
        )

    def note(self, text: str) -> None:
        """Print ``text`` above the line."""
        self._bar.console.print(Text(text, style="yellow"))


class PlainView:
    """A line for every new phase, and within one for every tenth of it and every ten seconds.

    Parameters
    ----------
    console : Console
        Where to print.
    clock : Callable
        Seconds from any origin.
    prefix : str
        Stands before every line.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        prefix: str = "",
    ) -> None:
        self._prefix = prefix
        self._console = console
        self._clock = clock
        self._begun = self._printed = clock()
        self._last: tuple[str, float] = ("", 0.0)

    def __enter__(self) -> Self:
        """Begin to count the seconds."""
        self._begun = self._printed = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: every line has been printed whole."""

    def stage(self, text: str) -> None:
        """Print ``text``."""
        self._print(text)

    def update(self, progress: Progress) -> None:
        """Print the progress if there is news."""
        share = progress.done / progress.total if progress.total else 0.0
        phase, printed_share = self._last
        quiet = self._clock() - self._printed
        news = progress.phase != phase or share == 1.0 != printed_share
        if news or share - printed_share >= _STEP or quiet >= _QUIET_SECONDS:
            self._last = (progress.phase, share)
            label = _LABELS[progress.phase]
            self._print(f"{label} {progress.done}/{progress.total} {progress.detail}".rstrip())

    def note(self, text: str) -> None:
        """Print ``text``."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._printed = self._clock()
        seconds = self._printed - self._begun
        # Soft-wrapped: a log is searched by line, so one event stays one line.
        line = f"[{seconds:6.1f} s] {self._prefix}{text}"
        self._console.print(Text(line), soft_wrap=True)
