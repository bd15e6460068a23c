"""Files that are whole or absent, also after a kill or a power cut."""

import errno
import os
from pathlib import Path

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
