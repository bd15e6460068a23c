"""Rows of data sets as documents: where their text is, whose it is, and what is passed over."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedprune.data.documents import Document, cut
from fedprune.errors import DataError

MOST_SKIPPED = 0.1
"""Largest share of rows that may hold no text."""

_log = logging.getLogger("flwr")


def field(row: Mapping[str, object], key: str) -> object:
    """Return what a row has under a name, ``doc.body`` also as a field in a field; else None."""
    if key in row:
        return row[key]
    found: object = row
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def text_or_chat(value: object) -> tuple[str, str] | None:
    """Return a text and the messages that it was made of, "" if of none; None for other values.

    `value`: a text, or messages: mappings with at least ``role`` and ``content``, both texts.
    """
    if isinstance(value, str):
        return value, ""
    if not isinstance(value, Sequence) or not value:
        return None
    plain = []
    for message in value:
        if not isinstance(message, Mapping):
            return None
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        plain.append(f"{role}: {content}")
    try:
        return "\n\n".join(plain), json.dumps([dict(message) for message in value])
    except (TypeError, ValueError):  # tools' results may be anything
        return None


def pieces_of(text: str, group: str, key: str, whole: bool, messages: str) -> Iterator[Document]:
    """Yield a text as documents: none if it is blank, numbered pieces if long and not `whole`."""
    # Half a surrogate pair is valid in JSON, yet no tokenizer takes it.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    uncut = whole or bool(messages)
    pieces = [piece for piece in ([text] if uncut else cut(text)) if piece.strip()]
    for index, piece in enumerate(pieces):
        yield Document(piece, group, f"{key}/{index}" if len(pieces) > 1 else key, messages)


@dataclass
class Skipped:
    """Counts rows without a text: a few are passed over, many are a mistake."""

    where: str  # what is read, for the log of this machine
    rows: int = 0
    empty: int = 0
    first: DataError | None = None

    def skip(self, error: DataError) -> None:
        """Count a row that holds no text; ``error`` is what is raised if there are too many."""
        self.empty += 1
        self.first = self.first or error

    def close(self) -> None:
        """Say what was passed over, or raise if it is more than `MOST_SKIPPED` of all rows."""
        if self.first is not None and self.empty > MOST_SKIPPED * self.rows:
            raise self.first
        if self.empty:
            _log.warning(
                "%d of %d rows of '%s' hold no text and are passed over",
                self.empty,
                self.rows,
                self.where,
            )
