"""The offline text source: the documentation inside the Python that is running.

Every Python carries its language reference and some thousand docstrings, so a first run needs no
download. Sources are parsed with `ast`, never imported. The split hashes the key, not the text or
its place, so a document that is held out under one Python version is held out under all.
"""

import ast
import contextlib
import gc
import hashlib
import inspect
import json
import os
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fedprune.data.documents import Document
from fedprune.disk import home, replace_file
from fedprune.errors import DataError

MIN_CHARACTERS = 40
HELDOUT_PER_MILLE = 100
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "fixes",
        "idle_test",
        "lib-dynload",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    }
)

# What holds statements, in the order in which they are written. Expressions hold no definitions.
_BLOCKS = ("body", "handlers", "orelse", "finalbody")


def stdlib_documents(split: Literal["train", "heldout"]) -> list[Document]:
    """Return the documentation of the running Python, one split of it, sorted by key.

    `split`: about nine tenths, or the rest. No key and no text is in both. Returns `group` is the
    top-level package or module, or "topics" for the language reference; `key` is
    "module:qualified.name". Raises DataError: this Python ships without its sources or its language
    reference.
    """
    train, heldout = _splits()
    return list(heldout if split == "heldout" else train)


def is_heldout(key: str) -> bool:
    """Return whether the document with this key belongs to the held-out split."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < HELDOUT_PER_MILLE


@lru_cache(maxsize=1)
def _splits() -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    with _no_garbage_collection():
        documents = sorted(
            [*_topics(), *_kept(Path(sysconfig.get_path("stdlib")))], key=lambda d: d.key
        )
    heldout = _distinct(d for d in documents if is_heldout(d.key))
    taken = {document.text for document in heldout}
    train = _distinct(d for d in documents if not is_heldout(d.key) and d.text not in taken)
    return train, heldout


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees are many small objects: beside torch's, looking through all takes most time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _distinct(documents: Iterator[Document]) -> tuple[Document, ...]:
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.text, document)
    return tuple(first.values())


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics  # some distributions package it apart
    except ImportError as error:
        raise DataError(
            "`data.source` 'stdlib' needs the module pydoc_data, which this Python lacks. "
            "Install the complete standard library, or set `data.source` to 'files'."
        ) from error
    for name, text in topics.items():
        yield Document(inspect.cleandoc(text), "topics", f"topics:{name}")


def _kept(root: Path) -> list[Document]:
    """Return the documents of the docstrings under a folder, parsed once for all processes.

    Parsing takes over a second, and Flower starts processes for each run and each message.
    """
    sources = sorted(_sources(root))
    place = home() / "texts" / f"stdlib-{_mark(sources)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):  # not there, or half written
        return [Document(*fields) for fields in json.loads(place.read_bytes())]
    found = list(_docstrings(root, sources))
    with contextlib.suppress(OSError):  # then the next process parses again
        place.parent.mkdir(parents=True, exist_ok=True)
        fields = [(one.text, one.group, one.key) for one in found]
        replace_file(place, json.dumps(fields).encode(), lasting=False)
    return found


def _mark(sources: Sequence[Path]) -> str:
    """Return a mark of these files as they are now, and of how this one reads them."""
    mark = hashlib.sha256(sys.version.encode() + Path(__file__).read_bytes())
    for path in sources:
        stat = path.stat()
        mark.update(
            f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return mark.hexdigest()[:16]


def _docstrings(root: Path, sources: Sequence[Path]) -> Iterator[Document]:
    found = False
    for path in sources:
        tree = _parsed(path)
        if tree is None:
            continue
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        seen: Counter[str] = Counter()
        for name, text in _walk(tree, ""):
            found = True
            seen[name] += 1
            # A property and its setter, or two branches of an `if`, share a qualified name.
            suffix = f"#{seen[name]}" if seen[name] > 1 else ""
            if len(text) >= MIN_CHARACTERS:
                yield Document(text, parts[0], f"{module}:{name}{suffix}")
    if not found:
        raise DataError(
            f"`data.source` 'stdlib' found no docstrings in the Python sources under '{root}'. "
            "Install a Python that ships its .py files, or set `data.source` to 'files'."
        )


def _sources(root: Path) -> Iterator[Path]:
    """Yield the library's own .py files; skipped folders are not even listed, they may be huge."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in SKIPPED_FOLDERS and not name.startswith("config-")
        ]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def _parsed(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library are not the user's
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return None


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, cleaned docstring) of a definition and all inside it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if not isinstance(node, ast.Module):
            prefix = f"{prefix}.{node.name}" if prefix else node.name
        docstring = ast.get_docstring(node)
        if docstring:
            yield prefix, docstring
    for block in _BLOCKS:
        for child in getattr(node, block, ()):
            yield from _walk(child, prefix)
