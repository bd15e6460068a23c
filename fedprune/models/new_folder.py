"""A folder that appears whole, and is on the disk, or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedprune.disk import commit_file, sync
from fedprune.errors import ModelError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that gets its name when the ``with`` statement ends well.

    Parameters
    ----------
    folder : Path
        Where it shall be: missing or empty, so that no work is overwritten.

    Raises
    ------
    ModelError
        If there is something, or it cannot be written; nothing is left behind then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(
            f"'{folder}' exists and is not an empty folder. Name a new one "
            "(`output_dir` for a run)."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # one that was killed may have left it
        partial.mkdir(parents=True)
        yield partial
        _flush(partial)
        commit_file(partial, folder)
    except OSError as error:
        raise ModelError(
            f"'{folder}' cannot be written: {error}. Free disk space or name another folder "
            "(`output_dir` for a run)."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)
