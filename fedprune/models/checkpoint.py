"""Tensors of safetensors files, mapped into memory one by one.

A mapped tensor costs memory only for the pages that are touched, processes that read the same file
share those pages, and they are given back when the tensor goes. The files come from a model hub or
a colleague: every number of a header is checked before anything is mapped.
"""

import json
import math
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedprune.errors import ModelError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What safetensors calls the types that a checkpoint's tensors have here."""

_LENGTH_BYTES = 8
_MOST_HEADER = 100_000_000  # the format's own limit
_MOST_AXES = 8
_MOST_SIZE = 1 << 63  # so that their product takes no time, and a tensor can have them


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies.

    Attributes
    ----------
    name : str
        How the file calls it.
    path : Path
        The file.
    dtype : torch.dtype
        Type of its elements.
    shape : tuple of int
        Its shape.
    start, stop : int
        Its bytes in the file.
    """

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.stop - self.start

    def map(self) -> Tensor:
        """Return the tensor, mapped copy-on-write: writing to it leaves the file alone.

        Raises
        ------
        ModelError
            If the file is gone or shorter than when it was indexed.
        """
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        first = self.start - self.start % mmap.ALLOCATIONGRANULARITY
        try:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(
                    file.fileno(), self.stop - first, access=mmap.ACCESS_COPY, offset=first
                )
        except (OSError, ValueError) as error:
            way_out = "Leave a model's files alone while a run uses them."
            raise ModelError(
                f"'{self.path}' cannot be read any more: {error}. {way_out}",
                outside=f"A file of the model cannot be read any more. {way_out}",
            ) from error
        flat = torch.frombuffer(
            mapped, dtype=self.dtype, count=math.prod(self.shape), offset=self.start - first
        )
        return flat.reshape(self.shape)

    def prefetch(self) -> None:
        """Let the system read the tensor's bytes in the background."""
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        with suppress(OSError), self.path.open("rb") as file:  # who reads it will say what is wrong
            os.posix_fadvise(file.fileno(), self.start, self.nbytes, os.POSIX_FADV_WILLNEED)


def index_files(paths: Iterable[Path]) -> dict[str, Stored]:
    """Return name -> place of every tensor in some safetensors files.

    Parameters
    ----------
    paths : Iterable[Path]
        The files.

    Raises
    ------
    ModelError
        If a file is truncated or otherwise not in the format, or two files hold the same name.
    """
    found: dict[str, Stored] = {}
    for path in paths:
        for name, stored in _read_header(path).items():
            if name in found:
                raise ModelError(
                    f"'{name}' is in '{found[name].path.name}' and in '{path.name}'. "
                    "Copy the whole model folder again."
                )
            found[name] = stored
    return found


def _read_header(path: Path) -> dict[str, Stored]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 0 < length <= min(_MOST_HEADER, size - _LENGTH_BYTES):
                raise ValueError("it is truncated or no safetensors file")
            header = json.loads(file.read(length))
            data = _LENGTH_BYTES + length
            return {
                name: _stored(name, path, entry, (data, size))
                for name, entry in header.items()
                if name != "__metadata__"
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"'{path}' cannot be loaded: {error}. Copy the whole model folder again."
        ) from error


def _stored(name: str, path: Path, entry: dict[str, object], room: tuple[int, int]) -> Stored:
    """Return the place that a header's entry describes; ValueError where it cannot be true.

    ``room`` is where the file's tensors begin and where the file ends.
    """
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"tensors of type {entry['dtype']} cannot be pruned")
    dtype = DTYPES[str(entry["dtype"])]
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError("its header is damaged")
    numbers = [*shape, *offsets]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("its header is damaged")
    if len(shape) > _MOST_AXES or max(shape, default=0) >= _MOST_SIZE:
        raise ValueError("its header is damaged")
    start, stop = (room[0] + offset for offset in offsets)
    if stop > room[1] or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("it is truncated or its header is damaged")
    return Stored(name, path, dtype, tuple(shape), start, stop)
