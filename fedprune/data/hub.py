"""Documents from the Hugging Face hub, or from a local folder that `datasets` opens.

Data sets are read as data: repositories that need code of their own are refused by the library.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedprune.config import DataConfig
from fedprune.data.documents import PIECE_CHARACTERS, Document
from fedprune.data.rows import Skipped, field, pieces_of, text_or_chat
from fedprune.data.tables import is_saved, saved_rows
from fedprune.errors import DataError


@dataclass(frozen=True)
class HubSplit:
    """Which part of a data set to read."""

    name: str
    # the file of the data set that holds it, or a pattern of files; None lets the data set say
    file: str | None = None
    limit: int | None = None  # read only so many rows, streamed instead of downloaded as a whole


def hub_documents(config: DataConfig, split: HubSplit) -> list[Document]:
    """Return the documents of one split of a data set, in its order.

    A row is a document, with one exception: rows that are the lines of a running text (some are
    blank, all others end in a newline, as in WikiText) are joined by blank lines into documents of
    about 16,000 characters, so that joining those in turn gives the published form of the text.

    `config`: `path`, `subset`, `revision`, `text_key`, `group_key`; with `whole_documents` long
    rows are not cut into pieces. Raises DataError if the data set cannot be had, or lacks the
    fields.
    """
    rows: list[tuple[str, str, str]] = []  # text, group, messages
    skipped = Skipped(config.path)
    for number, row in enumerate(_rows(config, split)):
        skipped.rows += 1
        found = _text(row, number, config, skipped)
        # A row without text keeps its place: what comes after keeps its key.
        text, messages = ("", "") if found is None else found
        group = None if config.group_key is None else field(row, config.group_key)
        rows.append((text, config.path if group is None else str(group), messages))
    skipped.close()
    texts = [text for text, _, _ in rows]
    if config.group_key is None and _is_running_text(texts):
        rows = [(text, config.path, "") for text in _joined(texts)]
    documents = [
        document
        for number, (text, group, messages) in enumerate(rows)
        for document in pieces_of(
            text, group, f"{split.name}#{number}", config.whole_documents, messages
        )
    ]
    if not documents:
        raise DataError(f"`data.split` '{split.name}' of data set '{config.path}' holds no text.")
    return documents


def _rows(config: DataConfig, split: HubSplit) -> Iterator[Mapping[str, object]]:
    """Yield the rows; whatever the library raises becomes a `DataError`."""
    # Imported here: takes a second, and only this source needs it.
    from datasets import load_dataset

    path = str(Path(config.path).expanduser()) if config.path.startswith("~") else config.path
    if is_saved(Path(path)):
        yield from itertools.islice(saved_rows(Path(path), split.name), split.limit)
        return
    try:
        rows = load_dataset(
            path,
            config.subset,
            data_files=None if split.file is None else {split.name: split.file},
            split=split.name,
            revision=config.revision,
            streaming=split.limit is not None,
            # Of one file the library must not demand the sizes and splits of the whole set.
            verification_mode="no_checks" if split.file else None,
        )
        yield from itertools.islice(rows, split.limit)
    except Exception as error:
        # Many types, from many libraries, all meaning the same. Those of the network, the file
        # system and the choice of a split are quoted; a parser's message, and `from error`, would
        # show private rows.
        quotable = isinstance(error, OSError) or type(error) is ValueError
        detail = f": {str(error).partition(chr(10))[0]}" if quotable else ""
        raise DataError(
            f"Split '{split.name}' of data set '{config.path}' cannot be read "
            f"({type(error).__name__}{detail}). Check `data.path`, `data.subset`, `data.split`, "
            "`data.split_file`, `data.heldout_split`, `data.heldout_file` and `data.revision`, and "
            "the network; without one, copy the data set here and write data=/path/to/texts."
        ) from None


def _text(
    row: Mapping[str, object], number: int, config: DataConfig, skipped: Skipped
) -> tuple[str, str] | None:
    """Return a row's text and messages; None if it holds none."""
    for key, name in (("data.text_key", config.text_key), ("data.group_key", config.group_key)):
        if name is not None and name not in row and name.partition(".")[0] not in row:
            names = ", ".join(repr(name) for name in row)
            raise DataError(
                f"`{key}` must be a column of data set '{config.path}', got '{name}'. "
                f"It has {names}."
            )
    value = field(row, config.text_key)
    found = text_or_chat(value)
    if found is None:
        error = DataError(
            f"Row {number} of data set '{config.path}' holds a {type(value).__name__} in column "
            f"'{config.text_key}', text was expected. Set `data.text_key`."
        )
        if value is not None:
            raise error
        skipped.skip(error)
    return found


def _is_running_text(texts: Sequence[str]) -> bool:
    blank = sum(not text.strip() for text in texts)
    return 0 < blank < len(texts) and all(text.endswith("\n") for text in texts if text.strip())


def _joined(lines: Sequence[str]) -> Iterator[str]:
    """Yield documents whose join by a blank line is the join of the lines by a blank line."""
    pending: list[str] = []
    size = 0
    for position, line in enumerate(lines):
        pending.append(line)
        size += len(line) + 2
        rest_is_long = len(lines) - position > 1 and size >= PIECE_CHARACTERS
        if rest_is_long and line.strip():
            yield "\n\n".join(pending)
            pending, size = [], 0
    if pending:
        yield "\n\n".join(pending)
