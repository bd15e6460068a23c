"""Write safetensors files tensor by tensor, so that a model larger than memory can be written."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from fedprune.models.checkpoint import DTYPES
from fedprune.models.raw import raw_bytes

SHARD_BYTES = 5_000_000_000
"""How large a file of a model's weights gets, as the library has it."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # of the first tensor in a file, as the library has it


@dataclass(frozen=True)
class TensorForm:
    """What a tensor will be like when it is written.

    Parameters
    ----------
    name : str
        Its name in the file.
    dtype : torch.dtype
        Type of its elements.
    shape : tuple of int
        Its shape.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "TensorForm":
        """Return the form of a tensor, whose data may be absent."""
        return cls(name, tensor.dtype, tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_model(
    folder: Path,
    forms: Sequence[TensorForm],
    tensor: Callable[[str], Tensor],
    shard_bytes: int,
) -> None:
    """Write a model's weights as one safetensors file, or as shards with an index.

    Parameters
    ----------
    folder : Path
        Where ``model.safetensors`` or ``model-00001-of-0000N.safetensors`` go.
    forms : Sequence[TensorForm]
        All tensors, in the order in which they are asked for and written.
    tensor : Callable[[str], Tensor]
        Name -> CPU tensor of the form announced; asked for once each and not kept.
    shard_bytes : int
        Most bytes of tensors in a file; a larger tensor has a file of its own.
    """
    shards = _split(forms, shard_bytes)
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0], tensor)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, shard, tensor)
        places |= {form.name: name for form in shard}
    index = {
        "metadata": {"total_size": sum(form.nbytes for form in forms)},
        "weight_map": dict(sorted(places.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_file(
    path: Path,
    forms: Sequence[TensorForm],
    tensor: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file, forced to the disk.

    Parameters
    ----------
    path : Path
        The file.
    forms, tensor
        As :func:`write_model`.
    metadata : Mapping[str, str], optional
        The file's own; by default that it holds PyTorch's tensors.

    Raises
    ------
    ValueError
        If a tensor is not of the form announced.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    for form in forms:
        header[form.name] = {
            "dtype": _NAMES[form.dtype],
            "shape": list(form.shape),
            "data_offsets": [offset, offset + form.nbytes],
        }
        offset += form.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for form in forms:
            _write(file, form, tensor(form.name))
        file.flush()
        os.fsync(file.fileno())


def _write(file: IO[bytes], form: TensorForm, tensor: Tensor) -> None:
    if tensor.dtype != form.dtype or tuple(tensor.shape) != form.shape:
        raise ValueError(
            f"'{form.name}' was announced as {form.dtype} {form.shape}, got {tensor.dtype} "
            f"{tuple(tensor.shape)}."
        )
    file.write(raw_bytes(tensor))


def _split(forms: Sequence[TensorForm], shard_bytes: int) -> list[list[TensorForm]]:
    shards: list[list[TensorForm]] = [[]]
    size = 0
    for form in forms:
        if shards[-1] and size + form.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(form)
        size += form.nbytes
    return shards
