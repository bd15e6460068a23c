"""Bytes that have no room in memory, on the disk while somebody needs them."""

import io
import os
import tempfile

import numpy as np
from numpy.typing import NDArray

from fedprune.disk import home


class Spill:
    """A file without a name, in ``spill`` under fedprune's folder; none before the first write.

    Nobody else can open it, and it is gone when this object or its process is: what is in it
    derives from private text.
    """

    def __init__(self) -> None:
        self._file: io.BufferedRandom | None = None

    @property
    def used(self) -> bool:
        """Whether anything was written."""
        return self._file is not None

    def write(self, data: bytes | memoryview) -> int:
        """Put bytes at the end and return where they start; OSError where the disk is full."""
        if self._file is None:
            folder = home() / "spill"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = tempfile.TemporaryFile(dir=folder)
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        self._file.flush()  # a full disk shall be noticed now
        return start

    def read(self, start: int, size: int) -> NDArray[np.uint8]:
        """Return so many bytes, at least one, read from the disk when they are looked at."""
        if self._file is None:
            raise RuntimeError("nothing was spilled.")
        return np.memmap(self._file, dtype=np.uint8, mode="c", offset=start, shape=(size,))
