"""Documents from local files: plain text, Markdown, JSON lines, or a folder of them.

The texts may be private: no error message quotes them, only file names, lines and field names, and
what another machine may be told of an error not even these: names of files can be names of people.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedprune.data.documents import Document, cut
from fedprune.errors import DataError

DEFAULT_GLOB = "**/*"
SEPARATOR = "<|endoftext|>"
_TEXT_SUFFIXES = (".txt", ".md")
_JSON_SUFFIXES = (".jsonl", ".json")
_LOG = "The node's own log says which."


@dataclass(frozen=True)
class FileQuery:
    """Which files to read and how.

    Parameters
    ----------
    path : str
        A file or a folder.
    origin : str
        The key that named the path, for messages.
    text_key, group_key : str, str or None
        Fields of JSON lines; without a group the file or its folder is the group.
    glob : str
        Pattern below a folder. The default takes the known suffixes only, any other all it matches.
    excluded : str or None
        A file or folder whose files are not read.
    whole : bool
        Long texts stay as they are instead of being cut into pieces.
    """

    path: str
    origin: str
    text_key: str = "text"
    group_key: str | None = None
    glob: str = DEFAULT_GLOB
    excluded: str | None = None
    whole: bool = False


def file_documents(query: FileQuery) -> list[Document]:
    """Return the documents of a file or folder, in the order of names and lines.

    A text is split at ``<|endoftext|>`` if that occurs; long texts are cut into pieces.

    Raises
    ------
    DataError
        If there is nothing to read, or a file is not UTF-8 text or not JSON lines with the field.
    """
    root = Path(query.path).expanduser()
    if not _exists(root, query):
        raise DataError(
            f"{query.origin} '{query.path}' does not exist. Give an existing file or folder.",
            outside=f"{query.origin} does not exist there. Give an existing file or folder.",
        )
    documents: list[Document] = []
    for file in _files(root, query):
        if file.suffix.lower() in _JSON_SUFFIXES:
            documents.extend(_json_documents(file, root, query))
        else:
            documents.extend(_text_documents(file, root, query.whole))
    if not documents:
        matching = f" that match `data.glob` '{query.glob}'" if root.is_dir() else ""
        apart = " and are not under `data.heldout_path`" if query.excluded else ""
        way_out = "Give .txt, .md, .jsonl or .json (lines) files that are not empty"
        raise DataError(
            f"{query.origin} '{query.path}' holds no text. {way_out}{matching}{apart}.",
            outside=f"{query.origin} holds no text. {way_out} and match the `glob`.",
        )
    return documents


def _exists(root: Path, query: FileQuery) -> bool:
    try:
        return root.exists()
    except OSError as error:
        raise DataError(
            f"{query.origin} '{query.path}' cannot be read: {error.strerror}.",
            outside=f"{query.origin} cannot be read: {error.strerror}.",
        ) from error


def _files(root: Path, query: FileQuery) -> list[Path]:
    excluded = Path(query.excluded).expanduser().resolve() if query.excluded else None
    candidates = [root] if root.is_file() else sorted(_matching(root, query.glob))
    return [
        path
        for path in candidates
        if excluded is None or not path.resolve().is_relative_to(excluded)
    ]


def _matching(root: Path, glob: str) -> Iterator[Path]:
    for path in root.glob(glob):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        known = path.suffix.lower() in _TEXT_SUFFIXES + _JSON_SUFFIXES
        if path.is_file() and not hidden and (known or glob != DEFAULT_GLOB):
            yield path


def _name_and_group(file: Path, root: Path) -> tuple[str, str]:
    if file == root:
        return file.name, file.stem
    relative = file.relative_to(root)
    nested = len(relative.parts) > 1
    return relative.as_posix(), relative.parent.as_posix() if nested else file.stem


def _read(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"'{file}' cannot be read: {error.strerror}.",
            outside=f"A file of its texts cannot be read: {error.strerror}. {_LOG}",
        ) from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        # `from None`: the original error carries the whole text.
        way_out = "Convert the file, or leave it out by `data.glob` (a node's own: `glob`)."
        raise DataError(
            f"'{file}' line {line} is not UTF-8. {way_out}",
            outside=f"A file of its texts is not UTF-8. {way_out} {_LOG}",
        ) from None


def _text_documents(file: Path, root: Path, whole: bool) -> Iterator[Document]:
    name, group = _name_and_group(file, root)
    parts = _read(file).split(SEPARATOR)
    pieces = parts if whole else [piece for text in parts for piece in cut(text)]
    texts = [piece for piece in pieces if piece.strip()]
    for index, text in enumerate(texts):
        yield Document(text, group, f"{name}#{index}")


def _json_documents(file: Path, root: Path, query: FileQuery) -> Iterator[Document]:
    name, group = _name_and_group(file, root)
    # Only "\n" ends a line of JSON lines; str.splitlines would also split inside strings.
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"'{file}' line {number}"
        row = _json_object(line, where)
        text = row.get(query.text_key)
        owner = group if query.group_key is None else row.get(query.group_key)
        if not isinstance(text, str):
            key = "`data.text_key` (a node's own: `text-key`)"
            raise DataError(
                f"{where} has no text in field '{query.text_key}'. Set {key}.",
                outside=f"A line of its texts has no text in its field. Set {key}. {_LOG}",
            )
        if not isinstance(owner, str | int):
            raise DataError(
                f"{where} has no text or number in field '{query.group_key}'. "
                "Set `data.group_key`.",
                outside="A line of its texts has no text or number in the field that "
                f"`data.group_key` names. {_LOG}",
            )
        yield from pieces_of(text, str(owner), f"{name}#{number}", query.whole)


def _json_object(line: str, where: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        rule = "JSON files must hold one object a line."
        raise DataError(
            f"{where} is not a JSON object. {rule}",
            outside=f"A line of its texts is not a JSON object. {rule} {_LOG}",
        )
    return row


def pieces_of(text: str, group: str, key: str, whole: bool = False) -> Iterator[Document]:
    """Yield a text as documents: none if it is blank, numbered pieces if long and not `whole`."""
    # Half a surrogate pair is valid in JSON, yet no tokenizer takes it.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    pieces = [piece for piece in ([text] if whole else cut(text)) if piece.strip()]
    for index, piece in enumerate(pieces):
        yield Document(piece, group, f"{key}/{index}" if len(pieces) > 1 else key)
