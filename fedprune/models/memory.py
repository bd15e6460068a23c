"""Out of memory, said in the words of the configuration."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from fedprune.errors import ModelError

# How torch's allocator for the CPU says it, in a plain RuntimeError.
_CPU_ALLOCATOR = "can't allocate memory"
_MMAP_THRESHOLD = -3  # of glibc's mallopt
_RETURNED_BYTES = 4 << 20


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)


@contextmanager
def explain_out_of_memory(doing: str, *keys: str) -> Iterator[None]:
    """Re-raise an out-of-memory error with the configuration keys that help.

    Parameters
    ----------
    doing : str
        What was going on, for example ``"pruning block 3"``.
    *keys : str
        Configuration keys to turn, the most effective first.

    Raises
    ------
    ModelError
        In place of ``torch.OutOfMemoryError`` and its like for the CPU.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        knobs = ", ".join(f"`{key}`" for key in keys)
        detail = str(error).partition("\n")[0]
        raise ModelError(
            f"Out of memory while {doing}: {detail} Lower or change one of: {knobs}."
        ) from error


def return_freed_memory() -> None:
    """Let arrays of some megabytes go back to the system when they are freed.

    The C library raises the size from which on it does so as a program goes, up to 32 MB; what is
    smaller stays with the process in pieces, some hundred megabytes of them in a server that adds
    up masks. Does nothing where there is no glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _RETURNED_BYTES)
