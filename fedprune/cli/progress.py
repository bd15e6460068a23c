"""Where a run is: a live line on a terminal, plain lines in a pipe or a CI log.

Both are driven by the lines that the ServerApp logs, see :mod:`fedprune.results.progress`.
"""

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from fedprune.results.progress import LABELS, Progress

_QUIET_SECONDS = 30.0
_STEP = 0.1
_REFRESHES = 5  # a second
_WIDEST_BAR, _NARROWEST_BAR = 20, 5
_MOST_LINES = 3
_INDENT = 2  # the spinner and a space


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
    # Colours can be forced into a pipe; a line that is drawn anew makes no sense there. Some CI
    # services give their jobs a terminal that only a log is made of.
    drawn = console.is_terminal and console.file.isatty() and not console.is_dumb_terminal
    if drawn and not os.environ.get("CI"):
        return LiveView(console, prefix)
    return PlainView(console, prefix=prefix)


class LiveView:
    """A line that is drawn anew in place, and broken where the window is narrow at the moment.

    Parameters
    ----------
    console : Console
        A terminal.
    prefix : str
        Stands before what happens.
    """

    def __init__(self, console: Console, prefix: str = "") -> None:
        self._prefix = prefix
        self._console = console
        self._begun = time.monotonic()
        self._head, self._share = f"{prefix}starting", -1.0
        self._details: tuple[str, ...] = ()
        self._spinner = Spinner("line" if console.options.ascii_only else "dots")
        self._live = Live(
            self,
            console=console,
            refresh_per_second=_REFRESHES,
            transient=True,
            # An inline run sends what is printed to its own log.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._begun = time.monotonic()
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the line off the screen."""
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for a window as wide as it is at this moment."""
        seconds = time.monotonic() - self._begun
        details = (*self._details, str(timedelta(seconds=int(seconds))))
        # A cell less, so that no terminal begins a new line after the last one.
        width = options.max_width - 1 - _INDENT
        lines = flowed(self._head, self._share, details, width, options.ascii_only)
        text = f"{self._spinner.render(seconds)} " + f"\n{' ' * _INDENT}".join(lines)
        yield Text(text, no_wrap=True, overflow="crop")

    def stage(self, text: str) -> None:
        """Show ``text`` without a bar."""
        self._head, self._share, self._details = f"{self._prefix}{text}", -1.0, ()
        self._live.refresh()

    def update(self, progress: Progress) -> None:
        """Show phase, bar and as many details as there is room for."""
        self._head = f"{self._prefix}{LABELS[progress.phase]}"
        self._share = progress.share if progress.total > 1 else -1.0
        self._details = progress.details
        self._live.refresh()

    def note(self, text: str) -> None:
        """Print ``text`` above the line."""
        self._console.print(Text(text, style="yellow"))


def flowed(
    head: str, share: float, details: Sequence[str], width: int, ascii_only: bool = False
) -> list[str]:
    """Return progress in as few lines as it takes, each at most ``width`` cells wide.

    Parameters
    ----------
    head : str
        What is happening.
    share : float
        How much of it is done, 0 to 1; negative where nobody knows.
    details : sequence of str
        What else there is to tell; what does not fit into three lines is left out.
    width : int
        Cells. A bar gets what the first line leaves of them.
    ascii_only : bool
        Whether the terminal has no other characters.
    """
    between = ", " if ascii_only else " · "
    percent = f" {share:.0%}" if share >= 0 else ""
    head = _cut(head, width - len(percent))
    lines = [head + percent]
    for detail in details:
        if cell_len(lines[-1] + between + detail) <= width:
            lines[-1] += between + detail
        else:
            lines.append(_cut(detail, width))
    if share >= 0:
        bar = _bar(share, min(width - cell_len(lines[0]) - 1, _WIDEST_BAR), ascii_only)
        lines[0] = f"{head}{bar}{lines[0].removeprefix(head)}"
    return lines[:_MOST_LINES]


def _cut(text: str, cells: int) -> str:
    found = Text(text)
    found.truncate(max(0, cells), overflow="crop")
    return found.plain


def _bar(share: float, cells: int, ascii_only: bool) -> str:
    if cells < _NARROWEST_BAR:
        return ""
    full, empty = "#-" if ascii_only else "━╌"
    done = round(share * cells)
    return f" {full * done}{empty * (cells - done)}"


class PlainView:
    """A line for every new phase, and within one for every tenth of it and every half minute.

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
        share = progress.share
        phase, printed_share = self._last
        quiet = self._clock() - self._printed
        news = progress.phase != phase or share == 1.0 != printed_share or share < printed_share
        if news or share - printed_share >= _STEP or quiet >= _QUIET_SECONDS:
            self._last = (progress.phase, share)
            percent = f" {share:.0%}" if progress.total > 1 else ""
            head = f"{LABELS[progress.phase]}{percent}"
            self._print(" · ".join([head, *progress.details]))

    def note(self, text: str) -> None:
        """Print ``text``."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._printed = self._clock()
        seconds = self._printed - self._begun
        # Soft-wrapped: a log is searched by line, so one event stays one line.
        line = f"[{seconds:6.1f} s] {self._prefix}{text}"
        self._console.print(Text(line), soft_wrap=True)
