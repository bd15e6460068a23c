"""Documents from local files: texts, JSON lines, tables, a saved data set, or a folder of them.

The texts may be private: no error message quotes them, only file names, lines and field names, and
what another machine may be told of an error not even these: names of files can be names of people.
"""

import bz2
import gzip
import json
import logging
import lzma
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fedprune.data.documents import Document, cut
from fedprune.data.find import find_files
from fedprune.data.rows import Skipped, field, pieces_of, text_or_chat
from fedprune.data.tables import SAVED_FILES, TABLE_SUFFIXES, is_saved, saved_rows, table_rows
from fedprune.errors import DataError

DEFAULT_GLOB = "**/*"
SEPARATOR = "<|endoftext|>"
_TEXT_SUFFIXES = (".txt", ".md")
_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonlines", ".jl", ".ldjson")
_UNPACK: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
_PACKED = (*_UNPACK, ".zst")
#: Known formats that are neither text nor rows; read as plain text they would be noise.
_REFUSED = frozenset(
    ".html .htm .xhtml .xml .svg .pdf .doc .docx .odt .rtf .epub .mobi .ppt .pptx .xls .xlsx .ods "
    ".zip .tar .tgz .7z .rar .pkl .pickle .npy .npz .pt .pth .bin .safetensors .gguf .sqlite .db "
    ".feather .orc .avro .h5 .hdf5 .mat .rds .png .jpg .jpeg .gif .mp3 .mp4 .wav".split()
)
_LOG = "The node's own log says which."
_log = logging.getLogger("flwr")


@dataclass(frozen=True)
class FileQuery:
    """Which files to read and how."""

    path: str  # a file or a folder
    origin: str  # the key that named the path, for messages
    # text_key, group_key: fields of rows, ``doc.body`` a field in a field; without a group the file
    # or its folder is the group
    text_key: str = "text"
    group_key: str | None = None
    # pattern below a folder. The default takes the known suffixes only, any other all it matches.
    glob: str = DEFAULT_GLOB
    excluded: str | None = None  # a file or folder whose files are not read
    whole: bool = False  # long texts stay as they are instead of being cut into pieces
    # whether this machine's operator named the path. Where another machine did, it is not told what
    # is wrong with it: not even whether it exists.
    own: bool = False


def file_documents(query: FileQuery) -> list[Document]:
    """Return the documents of a file or folder, in the order of names and lines.

    A text is split at ``<|endoftext|>`` if that occurs; long texts are cut into pieces. Rows
    without a text are passed over, if they are few.

    Raises DataError if there is nothing to read, a file is not UTF-8 text, has no rows with the
    field, or is of a known kind that is neither text nor rows.
    """
    try:
        return _file_documents(query)
    except DataError as error:
        if query.own:
            raise
        told = f"{query.origin} gives no texts there. {_LOG}"
        raise DataError(str(error), outside=told) from error.__cause__


def _file_documents(query: FileQuery) -> list[Document]:
    root = Path(query.path).expanduser()
    if not _exists(root, query):
        raise DataError(
            f"{query.origin} '{query.path}' does not exist. Give an existing file or folder.",
            outside=f"{query.origin} does not exist there. Give an existing file or folder.",
        )
    skipped = Skipped(str(root))
    documents: list[Document] = []
    if is_saved(root):
        name = root.name
        for number, row in enumerate(saved_rows(root, "train"), start=1):
            place = _Place(f"'{root}' row {number}", f"{name}#{number}", name)
            documents.extend(_row_documents(row, place, query, skipped))
    else:
        for file in _files(root, query):
            documents.extend(_documents(file, root, query, skipped))
    skipped.close()
    if not documents:
        matching = f" that match `data.glob` '{query.glob}'" if root.is_dir() else ""
        apart = " and are not under `data.heldout_path`" if query.excluded else ""
        way_out = "Give .txt, .md, .jsonl, .json (lines), .csv or .parquet files that are not empty"
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
    candidates = [root] if root.is_file() else _matching(root, query.glob)
    return [
        path
        for path in candidates
        if excluded is None or not path.resolve().is_relative_to(excluded)
    ]


def _matching(root: Path, glob: str) -> list[Path]:
    found = sorted(path for path in find_files(root, glob) if path.is_file())
    found = [path for path in found if not (path.name in SAVED_FILES and is_saved(path.parent))]
    if glob != DEFAULT_GLOB:
        return found
    kinds = (*_TEXT_SUFFIXES, *_JSON_SUFFIXES, *TABLE_SUFFIXES)
    known = [path for path in found if _kind(path) in kinds]
    left = Counter(_kind(path) or "without a suffix" for path in found if _kind(path) not in kinds)
    if left:
        listed = ", ".join(
            f"{count} {kind}"
            for kind, count in sorted(left.items(), key=lambda kind: (-kind[1], kind[0]))[:8]
        )
        _log.warning(
            "of '%s' these files are not read: %s. `data.glob` names what else is text",
            root,
            listed,
        )
    return known


def _kind(file: Path) -> str:
    """Return the suffix that says what is in a file, below that of a packer."""
    packed = file.suffix.lower() in _PACKED
    return Path(file.stem).suffix.lower() if packed else file.suffix.lower()


def _documents(file: Path, root: Path, query: FileQuery, skipped: Skipped) -> Iterator[Document]:
    kind = _kind(file)
    if kind in _REFUSED or (kind in TABLE_SUFFIXES and file.suffix.lower() in _PACKED):
        way_out = (
            "Convert it to .txt, .jsonl, .csv or .parquet, or leave it out by `data.glob` (a "
            "node's own: `glob`). To calibrate on markup itself, name the file .txt."
        )
        raise _refusal(f"'{file}'", "is no text, no JSON lines and no table", way_out)
    name, group = _name_and_group(file, root)
    if kind in TABLE_SUFFIXES:
        for number, row in enumerate(table_rows(file), start=1):
            place = _Place(f"'{file}' row {number}", f"{name}#{number}", group)
            yield from _row_documents(row, place, query, skipped)
    elif kind in _JSON_SUFFIXES or (kind not in _TEXT_SUFFIXES and _is_json_lines(file)):
        for unit, number, row in _json_rows(file):
            place = _Place(f"'{file}' {unit} {number}", f"{name}#{number}", group)
            yield from _row_documents(row, place, query, skipped)
    else:
        parts = _read(file).split(SEPARATOR)
        pieces = parts if query.whole else [piece for text in parts for piece in cut(text)]
        for index, text in enumerate(piece for piece in pieces if piece.strip()):
            yield Document(text, group, f"{name}#{index}")


def _refusal(
    where: str, what: str, way_out: str = "", whose: str = "A file of its texts"
) -> DataError:
    """Return an error of which another machine is told, but not the file."""
    way_out = f" {way_out}" if way_out else ""
    return DataError(f"{where} {what}.{way_out}", outside=f"{whose} {what}.{way_out} {_LOG}")


def _name_and_group(file: Path, root: Path) -> tuple[str, str]:
    if file == root:
        return file.name, file.stem
    relative = file.relative_to(root)
    nested = len(relative.parts) > 1
    return relative.as_posix(), relative.parent.as_posix() if nested else file.stem


def _read(file: Path) -> str:
    try:
        data = _unpacked(file)
    except OSError as error:
        why = error.strerror or "it is no file of its packer's"
        raise _refusal(f"'{file}'", f"cannot be read: {why}") from error
    except (EOFError, lzma.LZMAError, ValueError) as error:
        raise DataError(
            f"'{file}' cannot be unpacked ({type(error).__name__}). Pack it again.",
            outside=f"A file of its texts cannot be unpacked. {_LOG}",
        ) from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        # `from None`: the original error carries the whole text.
        way_out = "Convert the file, or leave it out by `data.glob` (a node's own: `glob`)."
        raise _refusal(f"'{file}' line {line}", "is not UTF-8", way_out) from None


def _unpacked(file: Path) -> bytes:
    packer = file.suffix.lower()
    if packer == ".zst":
        try:
            import zstandard  # type: ignore[import-not-found]
        except ImportError:
            way_out = "Install zstandard, or unpack it: zstd -d FILE."
            raise DataError(
                f"'{file}' is packed by zstd, which nothing here reads. {way_out}",
                outside=f"A file of its texts is packed by zstd. {way_out} {_LOG}",
            ) from None
        with file.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as plain:
            return bytes(plain.read())
    data = file.read_bytes()
    return _UNPACK[packer](data) if packer in _UNPACK else data


@dataclass(frozen=True)
class _Place:
    """Where a row is, for messages; the key of its document, and the group if it names none."""

    where: str
    key: str
    group: str


def _is_json_lines(file: Path) -> bool:
    """Whether the first lines of a file, whatever its name, are JSON objects."""
    lines = islice((line for line in _read(file).split("\n") if line.strip()), 3)
    try:
        rows = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return False
    return bool(rows) and all(isinstance(row, dict) for row in rows)


def _json_rows(file: Path) -> Iterator[tuple[str, int, Mapping[str, object]]]:
    """Yield what a row's number counts, the number, and the row: of lines, or of one array."""
    text = _read(file)
    if _kind(file) == ".json" and text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError):
            rows = []
        if rows and all(isinstance(row, dict) for row in rows):
            for number, row in enumerate(rows, start=1):
                yield "row", number, row
            return
    # Only "\n" ends a line of JSON lines; str.splitlines would also split inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                rule = "JSON files must hold one object a line, or an array of objects."
                where = f"'{file}' line {number}"
                raise _refusal(where, "is not a JSON object", rule, "A line of its texts")
            yield "line", number, row


def _row_documents(
    row: Mapping[str, object], place: _Place, query: FileQuery, skipped: Skipped
) -> Iterator[Document]:
    skipped.rows += 1
    value = field(row, query.text_key)
    owner = place.group if query.group_key is None else field(row, query.group_key)
    found = text_or_chat(value)
    if found is None:
        key = "`data.text_key` (a node's own: `text-key`)"
        error = DataError(
            f"{place.where} has no text in field '{query.text_key}'. Set {key}.",
            outside=f"A line of its texts has no text in its field. Set {key}. {_LOG}",
        )
        if value is not None:
            raise error
        skipped.skip(error)
        return
    if not isinstance(owner, str | int):
        raise DataError(
            f"{place.where} has no text or number in field '{query.group_key}'. "
            "Set `data.group_key`.",
            outside="A line of its texts has no text or number in the field that "
            f"`data.group_key` names. {_LOG}",
        )
    text, messages = found
    yield from pieces_of(text, str(owner), place.key, query.whole, messages)
