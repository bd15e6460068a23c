"""Files below a folder by a pattern, within bounds: the pattern may come from another machine."""

import os
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from fedprune.errors import DataError

MOST_ENTRIES = 1_000_000
MOST_DEPTH = 32
MOST_SECONDS = 60.0
_MOST_PARTS = 32
_MOST_CHARACTERS = 1000
_ANY = "**"


def find_files(root: Path, pattern: str) -> Iterator[Path]:
    """Yield the visible files below a folder that a pattern matches, each once, in no order.

    `root`: the folder; nothing outside of it is looked at. `pattern`: as :meth:`pathlib.Path.glob`
    has it: parts with ``*``, ``?`` and ``[...]``, and ``**`` for any folders. A folder that is a
    link is entered only where a part of its own names it. Raises DataError if the pattern leaves
    the folder or is too long, or there is more to look through than `MOST_ENTRIES`, `MOST_DEPTH`
    and `MOST_SECONDS` allow.
    """
    parts = _parts(pattern)
    ends = time.monotonic() + MOST_SECONDS
    seen = 0
    for folder, subfolders, files in os.walk(root, followlinks=_ANY not in parts):
        inside = Path(folder).relative_to(root).parts
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if _ANY not in parts and len(inside) >= len(parts) - 1:
            subfolders.clear()
        seen += len(subfolders) + len(files)
        if seen > MOST_ENTRIES or len(inside) > MOST_DEPTH or time.monotonic() > ends:
            way_out = "Name a smaller folder, or what is in it by a narrower `data.glob`."
            raise DataError(
                f"Looking for '{pattern}' in '{root}' was given up: more than {MOST_ENTRIES} "
                f"entries, {MOST_DEPTH} folders in one another or {MOST_SECONDS:.0f} s. {way_out}",
                outside=f"Looking for files that match the `glob` was given up. {way_out}",
            )
        for name in files:
            if not name.startswith(".") and _matches((*inside, name), parts):
                yield Path(folder, name)


def _parts(pattern: str) -> tuple[str, ...]:
    parts = [part for part in pattern.split("/") if part != "."]
    odd = pattern.startswith(("/", "\\", "~")) or ".." in parts or ":" in "".join(parts[:1])
    if odd or not any(parts) or len(pattern) > _MOST_CHARACTERS or len(parts) > _MOST_PARTS:
        raise DataError(
            f"`data.glob` (a node's own: `glob`) must be a pattern below the folder with at most "
            f"{_MOST_PARTS} parts, such as '**/*.txt', got '{pattern[:80]}'."
        )
    # "**/**" finds what "**" finds.
    return tuple(
        p for n, p in enumerate(parts) if p and not (p == _ANY and parts[n - 1 : n] == [_ANY])
    )


@lru_cache(maxsize=1 << 16)
def _matches(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether a path's names match a pattern's parts; each pair is looked at once."""
    if not parts:
        return not names
    if parts[0] == _ANY:
        # As pathlib has it, "**" at the end finds folders only.
        return len(parts) > 1 and any(
            _matches(names[start:], parts[1:]) for start in range(len(names))
        )
    return bool(names) and fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])
