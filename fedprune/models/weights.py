"""A model's tensors one by one: mapped from safetensors files, or held in memory.

A mapped tensor costs memory only for the pages that are touched, processes that read the same file
share those pages, and they are given back when the tensor goes. The files come from a model hub or
a colleague: every number of a header is checked before anything is mapped.
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from fedprune.errors import ModelError


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor's elements in row-major order, without a copy if it can.

    Parameters
    ----------
    tensor : Tensor
        Any shape and dtype, on the CPU; copied only where it is not contiguous.
    """
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


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


class WeightSource(Protocol):
    """Gives a model's tensors one by one, under the names of the model's state."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU; writing to it may change the model."""
        ...

    def prefetch(self, names: Iterable[str]) -> None:
        """Let tensors that will be asked for next be read in the background."""
        ...

    def stored_name(self, name: str) -> str:
        """Return how a checkpoint of this model calls a tensor."""
        ...


@dataclass(frozen=True)
class HeldWeights:
    """Weights in memory: of a model made in Python, or of a checkpoint that cannot be mapped.

    Parameters
    ----------
    model : nn.Module
        What holds them.
    """

    model: nn.Module

    def tensor(self, name: str) -> Tensor:
        """Return the tensor itself."""
        owner, _, attribute = name.rpartition(".")
        found: Tensor = getattr(self.model.get_submodule(owner), attribute)
        return found.detach()

    def prefetch(self, names: Iterable[str]) -> None:
        """Do nothing: all is there."""

    def stored_name(self, name: str) -> str:
        """Return the name in the model's state: every loader of ours knows it."""
        return name


@dataclass(frozen=True)
class MappedWeights:
    """Weights in safetensors files; none is in memory for longer than somebody holds it.

    Parameters
    ----------
    places : Mapping[str, Stored]
        Name in the model's state -> place of the tensor.
    like : Mapping[str, Tensor]
        Name -> tensor of the type that the model computes in; its data are not looked at.
    """

    places: Mapping[str, Stored]
    like: Mapping[str, Tensor]

    def tensor(self, name: str) -> Tensor:
        """Return the tensor, mapped; a copy where the model computes in another type."""
        return self.places[name].map().to(self.like[name].dtype)

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask the system to read the tensors' files ahead."""
        for name in names:
            self.places[name].prefetch()

    def stored_name(self, name: str) -> str:
        """Return the name in the files that the model came from."""
        return self.places[name].name


def find_places(
    names: Iterable[str], stored: Mapping[str, Stored], prefix: str, tied: Mapping[str, str]
) -> dict[str, Stored]:
    """Return where the tensors of a model's state lie; what is not found is left out.

    Parameters
    ----------
    names : Iterable[str]
        Names in the model's state.
    stored : Mapping[str, Stored]
        What the files hold.
    prefix : str
        Name of the model's body: checkpoints are written with it, or without, for the body alone.
    tied : Mapping[str, str]
        Name -> the name of the tensor that it shares, which may be the only one stored.
    """
    found = {}
    for name in names:
        for wanted in (name, tied.get(name)):
            if wanted is None:
                continue
            short = wanted.removeprefix(f"{prefix}.")
            options = (wanted, short, f"{prefix}.{wanted}")
            place = next((stored[option] for option in options if option in stored), None)
            if place is not None:
                found[name] = place
                break
    return found


def map_weights(
    source: str, model: PreTrainedModel, files: Mapping[str, Stored]
) -> MappedWeights | None:
    """Return where a model's weights lie in its files.

    Parameters
    ----------
    source : str
        Folder or Hub id, for messages.
    model : PreTrainedModel
        The architecture.
    files : Mapping[str, Stored]
        What the files hold, under their names.

    Returns
    -------
    MappedWeights or None
        None if only the library's own loader knows how to make the weights of what is stored, or
        to tell which of tied ones that differ count.

    Raises
    ------
    ModelError
        If weights are missing or have other shapes than the architecture's.
    """
    if model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict:
        return None
    state, stored = model.state_dict(), _renamed(model, files)
    places = find_places(state, stored, model.base_model_prefix, model.all_tied_weights_keys)
    absent = [name for name in state if name not in places]
    if absent and len(set(map(id, places.values()))) < len(stored):
        return None  # what is left over may be what is missing, under an older name
    if _untied(places, model.all_tied_weights_keys):
        return None
    check_complete(source, absent)
    for name, place in places.items():
        if place.shape != tuple(state[name].shape):
            raise ModelError(
                f"`model.path` '{source}' cannot be loaded: '{name}' has shape {place.shape}, its "
                f"configuration asks for {tuple(state[name].shape)}. Give a complete checkpoint."
            )
    return MappedWeights(places, state)


def _untied(places: Mapping[str, Stored], tied: Mapping[str, str]) -> bool:
    """Whether weights that the configuration ties are stored apart and differ."""
    pairs = [(places[name], places[other]) for name, other in tied.items() if name in places]
    return any(one is not two and not torch.equal(one.map(), two.map()) for one, two in pairs)


def check_complete(source: str, absent: Sequence[str]) -> None:
    """Raise ``ModelError`` if a checkpoint lacks weights."""
    if absent:
        raise ModelError(
            f"`model.path` '{source}' lacks {len(absent)} weights of its architecture, among "
            f"them {', '.join(absent[:3])}. Give a complete checkpoint."
        )


def _renamed(model: PreTrainedModel, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return what is stored under today's names: some families' checkpoints have older ones."""
    renamings = [
        one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)
    ]

    def today(name: str) -> str:
        for one in renamings:
            name, _ = one.rename_source_key(name)
        return name

    return {today(name): place for name, place in stored.items()}


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
