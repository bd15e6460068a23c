"""A terminal's screen, as far as the live display needs one, and programs that run on it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence

_TOKEN = re.compile(r"\x1b\[(\?25[lh]|\d*[A-Za-z]|[\d;]*m)|\r|\n|.", re.DOTALL)


class Screen:
    """Rows of characters that understand what a live display sends; anything else is an error."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        """Draw what a program has written."""
        for match in _TOKEN.finditer(text):
            token = match[0]
            if token == "\r":
                self._column = 0
            elif token == "\n":
                self._down()
            elif token.startswith("\x1b"):
                self._control(match[1])
            else:
                self._put(token)

    def text(self) -> list[str]:
        """Return the rows that are not empty."""
        lines = ["".join(row).rstrip() for row in self.rows]
        return [line for line in lines if line]

    def _put(self, character: str) -> None:
        if self._column == self.columns:  # terminals wrap when there is more to come
            self._column = 0
            self._down()
        row = self.rows[self._row]
        row += " " * (self._column + 1 - len(row))
        row[self._column] = character
        self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.rows):
            self.rows.append([])

    def _control(self, code: str) -> None:
        if code.endswith("A"):
            self._row = max(0, self._row - int(code[:-1] or 1))
        elif code == "2K":
            self.rows[self._row] = []
        elif code[-1] not in "mlh":
            raise AssertionError(f"unexpected control code {code!r}")


def run_on_terminal(
    arguments: Sequence[str], widths: Sequence[tuple[str, int]], environment: Mapping[str, str]
) -> tuple[int, str]:
    """Run Python on a terminal of its own and return its exit code and all it has written.

    `widths`: the window's columns after this text has been seen; the first text is "".
    """
    mine, theirs = pty.openpty()
    _resize(theirs, widths[0][1])
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=dict(environment),
        start_new_session=True,
    )
    rest = list(widths[1:])
    seen, deadline = b"", time.monotonic() + 120
    os.close(theirs)
    while time.monotonic() < deadline:
        if not select.select([mine], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(mine, 65536)
        except OSError:  # Linux' way to say that the program has closed the terminal
            break
        seen += data
        if not data:
            break
        if rest and rest[0][0].encode() in seen:
            _resize(mine, rest.pop(0)[1])
    os.close(mine)
    return process.wait(10), seen.decode()


def _resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
