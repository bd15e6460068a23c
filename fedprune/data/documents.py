"""One text and whose it is: the unit that sources yield and partitions hand out.

Long texts come in pieces: contiguous, in order, cut where a paragraph, a line or a word ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text with its natural owner.

    Parameters
    ----------
    text : str
        The text itself, never empty.
    group : str
        Natural owner: a package, a file, or the value of a column.
    key : str
        Stable id, unique within its source.
    """

    text: str
    group: str
    key: str


PIECE_CHARACTERS = 16_000
"""About the length of a piece: some thousands of tokens, more than a calibration sample needs."""

_ENDS = ("\n\n", "\n", " ")


def cut(text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield pieces of ``size / 2`` to ``1.5 * size`` characters that join to the text again.

    A text of at most ``1.5 * size`` characters is one piece.
    """
    start = 0
    while len(text) - start > size + size // 2:
        stop = break_before(text, start + size // 2, start + size)
        yield text[start:stop]
        start = stop
    yield text[start:]


def break_before(text: str, start: int, stop: int) -> int:
    """Return the best place in (start, stop] to cut a text: after a paragraph, a line, a word."""
    for end in _ENDS:
        found = text.rfind(end, start, stop)
        if found >= 0:
            return found + len(end)
    return stop
