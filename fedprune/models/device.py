"""Where to compute and with how much: the device, a walk's limits, and running out of memory."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch

from fedprune.config import PrunerConfig
from fedprune.errors import ConfigError, ModelError


def pick_device(wanted: str) -> torch.device:
    """Return the device to compute on: as configured, or the accelerator if there is one.

    Raises ConfigError if the machine has no such accelerator.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device, count = torch.device(wanted), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"`pruner.device` (a node's own: `device`) must be a device of this machine, which has "
            f"{count} for CUDA, got '{wanted}'. Choose 'auto' or 'cpu'."
        )
    return device


def wait(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Limits:
    """What a walk may use."""

    # sequences that run through a block at a time. Where memory runs out it is halved; with 1 a
    # sequence's results do not depend on what else is walked.
    batch_size: int = 1
    # hidden states beyond so many megabytes go to the disk; None takes a share of what is free
    hidden_memory_mb: int | None = None
    # the configuration key that sets the length of the sequences
    length_key: str = "pruner.seq_len"

    @classmethod
    def of(cls, config: PrunerConfig, length_key: str = "pruner.seq_len") -> "Limits":
        """Return what the configuration allows."""
        return cls(config.batch_size, config.hidden_memory_mb, length_key)

    @property
    def keys(self) -> tuple[str, ...]:
        """The configuration keys that help where memory runs out."""
        return "pruner.batch_size", self.length_key, "pruner.device"


DEFAULT = Limits()
"""One sequence at a time."""


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

    `doing`: what was going on, for example ``"pruning block 3"``. Raises ModelError: in place of
    ``torch.OutOfMemoryError`` and its like for the CPU.
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
