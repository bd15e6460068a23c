"""One line of log that both a person and the command line's progress bar can read."""

import re
from dataclasses import dataclass

PHASES = ("connect", "handshake", "prune", "evaluate", "export", "done")
_LINE = re.compile(
    r"fedprune: (?P<phase>[a-z]+) (?P<done>\d+)/(?P<total>\d+)(?: · (?P<detail>.*))?"
)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    phase : str
        One of :data:`PHASES`.
    done, total : int
        Steps finished and steps in this phase.
    detail : str
        What is happening, for people.
    """

    phase: str
    done: int
    total: int
    detail: str = ""

    def line(self) -> str:
        """Return the line to log."""
        tail = f" · {self.detail}" if self.detail else ""
        return f"fedprune: {self.phase} {self.done}/{self.total}{tail}"


def parse_progress(line: str) -> Progress | None:
    """Return the progress that a log line reports, or None if it is another line."""
    found = _LINE.search(line)
    if found is None or found["phase"] not in PHASES:
        return None
    detail = (found["detail"] or "").strip()
    return Progress(found["phase"], int(found["done"]), int(found["total"]), detail)


def size_text(size: int) -> str:
    """Return a number of bytes in words, for example "1.2 MB" (decimal units)."""
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"
