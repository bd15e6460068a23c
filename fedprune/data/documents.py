"""One text and whose it is: the unit that sources yield and partitions hand out.

Long texts come in pieces: contiguous, in order, cut where a paragraph, a line or a word ends.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from fedprune.errors import DataError


@dataclass(frozen=True)
class Document:
    """A text with its natural owner."""

    text: str  # the text itself, never empty
    group: str  # natural owner: a package, a file, or the value of a column
    key: str  # stable id, unique within its source
    messages: str = ""  # of a chat the messages as JSON, whose plain reading ``text`` is; else ""

    def rendered(self, tokenizer: object) -> str:
        """Return the text as a model reads it: a chat by its tokenizer's template.

        Raises DataError if the tokenizer has no template that takes the messages.
        """
        if not self.messages:
            return self.text
        try:
            render = tokenizer.apply_chat_template  # type: ignore[attr-defined]
            return str(render(json.loads(self.messages), tokenize=False))
        except Exception:  # a template raises what it likes, and may quote the messages
            raise DataError(
                "`data.text_key` names chat messages, and the model's tokenizer has no chat "
                "template that takes them. Name a field of plain text, or give a chat model."
            ) from None


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
