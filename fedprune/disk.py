"""Files and folders that are whole or absent, also after a kill or a power cut; and the cache."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedprune.errors import ModelError


def home() -> Path:
    """Return the cache folder: ``$FEDPRUNE_HOME`` or ``~/.cache/fedprune``."""
    chosen = os.environ.get("FEDPRUNE_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "fedprune"


_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def is_refusal(error: BaseException | None) -> bool:
    """Whether an error says that a disk is full or may not be written, or comes from such a one."""
    if isinstance(error, OSError):
        return error.errno in _REFUSALS
    return error is not None and is_refusal(error.__cause__)


def replace_file(target: Path, data: bytes, *, lasting: bool = True, mode: int = 0o666) -> None:
    """Put bytes in place of a file: whoever reads it meets the old ones or the new ones.

    They are on the disk when this returns, unless ``lasting`` is false: for what is written often
    and not missed after a power cut. ``mode`` is that of a new file, less the umask. A kill can
    leave a file ``*.partial`` beside the target, which the next call replaces.
    """
    partial = target.with_name(f"{target.name}.partial")
    with open(partial, "wb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
        file.write(data)
        file.flush()
        if lasting:
            os.fsync(file.fileno())
    if lasting:
        commit_file(partial, target)
    else:
        partial.replace(target)


def read_if_there(path: Path) -> bytes | None:
    """Return what a file holds, None if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read piece by piece, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_at(target: Path, start: int, data: bytes) -> None:
    """Let a file end with these bytes from ``start`` on, or there if they cannot all be written."""
    with target.open("r+b", buffering=0) as file:
        file.truncate(start)
        file.seek(start)
        left = memoryview(data)
        try:
            while left:
                left = left[file.write(left) or 0 :]
        except OSError:
            file.truncate(start)
            raise


def commit_file(partial: Path, target: Path) -> None:
    """Give a file or folder that is on the disk its name, for good."""
    partial.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that gets its name when the ``with`` statement ends well.

    `folder`: where it shall be: missing or empty, so that no work is overwritten. Raises ModelError
    if there is something, or it cannot be written; nothing is left behind then.
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
