"""Room for models that servers send: by the operator's limit and on the disk."""

import contextlib
import shutil
import time
from pathlib import Path

from fedprune.errors import ModelError
from fedprune.models.transfer import Manifest, is_digest

PARTIAL = ".partial"
GROWING = ".part"
DAY_SECONDS = 24 * 3600
# A run needs room beside the model, too.
_SPARE_BYTES = 200_000_000
_GIGABYTE = 1e9


def make_room(root: Path, manifest: Manifest, partial: Path, most_bytes: int) -> None:
    """Delete models that make room for another one.

    Parameters
    ----------
    root : Path
        Where they all lie.
    manifest : Manifest
        Of the model to come.
    partial : Path
        Where it grows; what is there already is not asked for again.
    most_bytes : int
        What all of them may take together.

    Raises
    ------
    ModelError
        If there is no room, by the operator's limit or on the disk.
    """
    if manifest.size > most_bytes:
        raise ModelError(
            f"`max-model-gb` in the node's --node-config is {most_bytes / _GIGABYTE:g}, "
            f"the server's model has {manifest.size / _GIGABYTE:.3g} GB. Raise it, or give the "
            "node its own copy: `model-path`."
        )
    others = [folder for folder in by_use(root, "*", f".*{PARTIAL}") if folder != partial]
    taken = {folder: _bytes_in(folder) for folder in others}
    while others and sum(taken.values()) + manifest.size > most_bytes:
        oldest = others.pop(0)
        if time.time() - touched(oldest) < DAY_SECONDS:
            raise ModelError(
                f"`max-model-gb` in the node's --node-config is "
                f"{most_bytes / _GIGABYTE:g}, and models of the last day take "
                f"{sum(taken.values()) / _GIGABYTE:.3g} GB of it beside the "
                f"{manifest.size / _GIGABYTE:.3g} GB of this one. Raise it, or wait."
            )
        shutil.rmtree(oldest, ignore_errors=True)
        del taken[oldest]
    needed = manifest.size - _bytes_in(partial) + _SPARE_BYTES
    free = shutil.disk_usage(root).free
    if needed > free:
        raise ModelError(
            f"The node's disk has {free / _GIGABYTE:.3g} GB free, the server's model needs "
            f"{needed / _GIGABYTE:.3g} GB more. Free disk space, point FEDPRUNE_HOME to a "
            "larger disk, or give the node its own copy: `model-path`."
        )


def by_use(root: Path, *names: str) -> list[Path]:
    """Return models' folders by patterns, the one that was used longest ago first."""
    found = [path for name in names for path in root.glob(name)]
    return sorted((path for path in found if is_digest(digest_of(path))), key=touched)


def _bytes_in(folder: Path) -> int:
    found = 0
    with contextlib.suppress(OSError):
        found = sum(path.stat().st_size for path in folder.iterdir())
    return found


def digest_of(folder: Path) -> str:
    """Return the hash that names a model's folder, whole or on its way."""
    return folder.name.removeprefix(".").removesuffix(PARTIAL)


def touched(folder: Path) -> float:
    """Return when a folder or a file in it was changed last."""
    return max(path.stat().st_mtime for path in (folder, *folder.glob(f"*{GROWING}")))
