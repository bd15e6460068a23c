"""Tensors of safetensors files, mapped one by one and written.

A mapped tensor costs memory only for the pages that are touched, processes that read the same file
share those pages, and they are given back when the tensor goes.
"""

import ctypes
import mmap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedprune.disk import commit_file, sync
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

_LEAST_PREFETCHED = 4 << 20
_WILL_NEED = 3  # of the C library's madvise


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor's elements in row-major order, without a copy if it can.

    `tensor`: any shape and dtype, on the CPU; copied only where it is not contiguous.
    """
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file."""

    name: str  # how the file calls it
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def map(self) -> Tensor:
        """Return the tensor; errors as :func:`map_tensors`."""
        return map_tensors({"": self})[""]


def map_tensors(places: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Return tensors, mapped copy-on-write: writing to one leaves its file alone.

    `places`: any name -> which tensor; a file is opened once for all that it holds. Raises
    ModelError if a file is gone or another one than when it was indexed.
    """
    found: dict[str, Tensor] = {}
    for path in dict.fromkeys(place.path for place in places.values()):
        try:
            with safe_open(path, framework="pt") as file:
                for name, place in places.items():
                    if place.path == path:
                        found[name] = file.get_tensor(place.name)
                        if (found[name].dtype, tuple(found[name].shape)) != (
                            place.dtype,
                            place.shape,
                        ):
                            raise OSError("it is another file")
        except (OSError, SafetensorError) as error:
            way_out = "Leave a model's files alone while a run uses them."
            raise ModelError(
                f"'{path}' cannot be read any more: {error}. {way_out}",
                outside=f"A file of the model cannot be read any more. {way_out}",
            ) from error
    return found


def prefetch(places: Iterable[Stored]) -> None:
    """Let the system read tensors' bytes in the background, where it is worth the asking."""
    wanted = {place.name: place for place in places}
    if sum(place.nbytes for place in wanted.values()) < _LEAST_PREFETCHED:
        return
    with suppress(ModelError, OSError, AttributeError):  # who reads them will say what is wrong
        advise = ctypes.CDLL(None).madvise
        for tensor in map_tensors(wanted).values():
            start = tensor.data_ptr() - tensor.data_ptr() % mmap.PAGESIZE
            size = tensor.data_ptr() + tensor.nbytes - start
            advise(ctypes.c_void_p(start), ctypes.c_size_t(size), _WILL_NEED)


def index_files(paths: Iterable[Path]) -> dict[str, Stored]:
    """Return name -> place of every tensor in some safetensors files.

    `paths`: the files; they may come from anyone. Raises ModelError if a file is truncated or
    otherwise not in the format, or two files hold the same name.
    """
    found: dict[str, Stored] = {}
    for path in paths:
        for name, stored in _index(path).items():
            if name in found:
                raise ModelError(
                    f"'{name}' is in '{found[name].path.name}' and in '{path.name}'. "
                    "Copy the whole model folder again."
                )
            found[name] = stored
    return found


def _index(path: Path) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a file is no mapping
                part = file.get_slice(name)
                kind = part.get_dtype()
                if kind not in DTYPES:
                    raise ValueError(f"tensors of type {kind} cannot be pruned")
                found[name] = Stored(name, path, DTYPES[kind], tuple(part.get_shape()))
    except SafetensorError as error:
        raise _unreadable(path, f"it is truncated or no safetensors file ({error})") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    return found


def _unreadable(path: Path, why: str) -> ModelError:
    return ModelError(f"'{path}' cannot be loaded: {why}. Copy the whole model folder again.")


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    mode: int = 0o666,
) -> None:
    """Write a safetensors file that appears whole, and is on the disk, or not at all.

    `path`: the file; an older one is replaced. `tensors`: on the CPU; none is copied that is
    contiguous, so mapped ones take no memory. `metadata`: the file's own; by default that it holds
    PyTorch's tensors.
    """
    partial = path.with_name(f".{path.name}.partial")
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        partial.unlink(missing_ok=True)
        partial.touch(mode=mode)
        allowed = partial.stat().st_mode
        save_file(whole, partial, dict(metadata or {"format": "pt"}))
        partial.chmod(allowed)  # the library makes files for their owner only
        sync(partial)
        commit_file(partial, path)
    except SafetensorError as error:  # how the library says that a disk is full
        raise OSError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)
