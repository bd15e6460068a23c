"""Hidden states of many samples: in memory up to a limit, beyond it on the disk."""

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.home import home
from fedprune.memory import free_memory
from fedprune.models.raw import raw_bytes

# Two sets exist while a block runs, its inputs and its outputs; the rest is for everything else.
_SHARE_OF_FREE_MEMORY = 8


def memory_limit(configured_mb: int | None) -> int:
    """Return how many bytes of hidden states to keep in memory.

    Parameters
    ----------
    configured_mb : int or None
        `pruner.hidden_memory_mb`; None takes an eighth of the memory that is free now.
    """
    if configured_mb is not None:
        return configured_mb * 1_000_000
    return free_memory() // _SHARE_OF_FREE_MEMORY


@dataclass
class HiddenStates(Sequence[Tensor]):
    """One tensor a sample, in the order in which they are added.

    What does not fit into the limit goes to a file without a name, which nobody else can open and
    which is gone when this object or its process is: hidden states derive from private text.

    Parameters
    ----------
    limit_bytes : int
        Most bytes to keep in memory.
    """

    limit_bytes: int
    _held: list[Tensor] = field(default_factory=list)
    _spilled: list[tuple[int, torch.dtype, torch.Size]] = field(default_factory=list)
    _bytes: int = 0
    _file: io.BufferedRandom | None = None

    def append(self, tensor: Tensor) -> None:
        """Add a sample's hidden states, a CPU tensor.

        Raises
        ------
        ModelError
            If the disk is full.
        """
        if not self._spilled and self._bytes + tensor.nbytes <= self.limit_bytes:
            self._held.append(tensor)
            self._bytes += tensor.nbytes
        else:
            self._spill(tensor)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._held) + len(self._spilled)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        """Return a sample's hidden states; read from the disk if they are there."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        held = len(self._held)
        return self._held[number] if number < held else self._read(*self._spilled[number - held])

    def __iter__(self) -> Iterator[Tensor]:
        """Return the samples one by one."""
        return (self[number] for number in range(len(self)))

    def _spill(self, tensor: Tensor) -> None:
        try:
            if self._file is None:
                folder = home() / "spill"
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = tempfile.TemporaryFile(dir=folder)
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(raw_bytes(tensor))
            self._file.flush()  # a full disk shall be noticed now
        except OSError as error:
            raise ModelError(
                f"Hidden states beyond {self.limit_bytes / 1e6:.0f} MB go to '{home()}', which "
                f"cannot take them: {error.strerror}. Free disk space, raise "
                "`pruner.hidden_memory_mb`, or lower `pruner.num_calibration_samples`."
            ) from error
        self._spilled.append((start, tensor.dtype, tensor.shape))

    def _read(self, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        if self._file is None:
            raise RuntimeError("nothing was spilled.")
        self._file.seek(start)
        raw = np.empty(shape.numel() * dtype.itemsize, dtype=np.uint8)
        self._file.readinto(raw.data)
        return torch.from_numpy(raw).view(dtype).reshape(shape)
