"""What nobody has used for long, told by a clock that may be wrong.

A clock that is set ahead makes everything look old at once, and a file server has a clock of its
own. So nothing goes at first sight: it must look unused in two looks that lie a day apart.
"""

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from fedprune.disk import replace_file

DAY_SECONDS = 24 * 3600
_SEEN = ".unused.json"


def long_unused(root: Path, looking: Iterable[Path]) -> list[Path]:
    """Return those folders that looked unused a day ago, too, and note the others for next time.

    `root`: where they all lie. `looking`: those that look unused now; others are in use again.
    """
    now, before = time.time(), _seen(root)
    # A look from the future was taken by a clock that is right again.
    seen = {path: min(before.get(path.name, now), now) for path in looking}
    due = [path for path, first in seen.items() if now - first > DAY_SECONDS]
    left = {path.name: first for path, first in seen.items() if path not in due}
    if left != before:
        with contextlib.suppress(OSError):  # nothing is deleted then
            replace_file(root / _SEEN, json.dumps(left).encode())
    return due


def _seen(root: Path) -> dict[str, float]:
    """Return name -> when it first looked unused."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads((root / _SEEN).read_text(encoding="utf-8"))
        return {name: float(at) for name, at in found.items() if isinstance(at, int | float)}
    return {}
