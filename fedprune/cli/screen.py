"""What all commands print: text as it is, in which nothing is markup or steers a terminal."""

import sys

from rich.console import Console
from rich.text import Text

from fedprune.results.text import printable


def say(console: Console, text: str, style: str = "") -> None:
    """Print text, each line of it on one line."""
    console.print(Text(printable(text), style=style), soft_wrap=True)


def note_console() -> Console:
    """Return the console for everything but results."""
    # The stream itself, not the name: an inline run sends what is printed meanwhile to its log.
    return Console(file=sys.stderr)
