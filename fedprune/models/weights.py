"""A model's tensors one by one: mapped from safetensors files, or held in memory.

A mapped tensor costs memory only for the pages that are touched, processes that read the same file
share those pages, and they are given back when the tensor goes.
"""

import ctypes
import logging
import mmap
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

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

# What older releases stored of what follows from the configuration.
_DERIVED = re.compile(r"rotary_emb\.|\.attn\.(masked_)?bias$|position_ids$")
_log = logging.getLogger("flwr")
_LEAST_PREFETCHED = 4 << 20
_WILL_NEED = 3  # of the C library's madvise


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor's elements in row-major order, without a copy if it can.

    Parameters
    ----------
    tensor : Tensor
        Any shape and dtype, on the CPU; copied only where it is not contiguous.
    """
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file.

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
    """

    name: str
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

    Parameters
    ----------
    places : Mapping[str, Stored]
        Any name -> which tensor; a file is opened once for all that it holds.

    Raises
    ------
    ModelError
        If a file is gone or another one than when it was indexed.
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

    Parameters
    ----------
    paths : Iterable[Path]
        The files; they may come from anyone.

    Raises
    ------
    ModelError
        If a file is truncated or otherwise not in the format, or two files hold the same name.
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

    Parameters
    ----------
    path : Path
        The file; an older one is replaced.
    tensors : Mapping[str, Tensor]
        On the CPU; none is copied that is contiguous, so mapped ones take no memory.
    metadata : Mapping[str, str], optional
        The file's own; by default that it holds PyTorch's tensors.
    mode : int
        Of the file, less the umask.
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


class WeightSource(Protocol):
    """Gives a model's tensors under the names of the model's state."""

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors on the CPU; writing to one may change the model."""
        ...

    def prefetch(self, names: Iterable[str]) -> None:
        """Let tensors that will be asked for next be read in the background."""
        ...

    def stored_name(self, name: str) -> str:
        """Return how a checkpoint of this model calls a tensor."""
        ...


@dataclass(frozen=True)
class HeldWeights:
    """Weights in memory: of a model made in Python, or of a checkpoint that cannot be mapped."""

    model: nn.Module

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors themselves."""
        found: dict[str, Tensor] = {}
        for name in names:
            owner, _, attribute = name.rpartition(".")
            found[name] = getattr(self.model.get_submodule(owner), attribute).detach()
        return found

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

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors, mapped; copies where the model computes in another type."""
        mapped = map_tensors({name: self.places[name] for name in names})
        return {name: tensor.to(self.like[name].dtype) for name, tensor in mapped.items()}

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask the system to read the tensors' files ahead."""
        prefetch(self.places[name] for name in names)

    def stored_name(self, name: str) -> str:
        """Return the name in the files that the model came from."""
        return self.places[name].name


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the name of every weight that is another one -> the name of that."""
    held = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: other
        for name, other in model.all_tied_weights_keys.items()
        if held.get(name) is held.get(other)
    }


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
        Name -> the name of the tensor that it shares; either may be the only one stored.
    """
    found = {}
    for name in names:
        shared = tied.get(name, name)
        for wanted in (name, shared, *(one for one, other in tied.items() if other == shared)):
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
        None if only the library's own loader knows how to make the weights of what is stored.

    Raises
    ------
    ModelError
        If weights are missing or have other shapes than the architecture's.
    """
    if model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict:
        return None
    state, stored = model.state_dict(), _renamed(model, files)
    places = find_places(state, stored, model.base_model_prefix, tied_names(model))
    absent = [name for name in state if name not in places]
    if absent and len(set(map(id, places.values()))) < len(stored):
        return None  # what is left over may be what is missing, under an older name
    check_complete(source, absent)
    _say_left_out(source, model, stored, places)
    for name, place in places.items():
        if place.shape != tuple(state[name].shape):
            raise ModelError(
                f"`model.path` '{source}' cannot be loaded: '{name}' has shape {place.shape}, its "
                f"configuration asks for {tuple(state[name].shape)}. Give a complete checkpoint."
            )
    return MappedWeights(places, state)


def stored_apart(model: PreTrainedModel, files: Mapping[str, Stored]) -> bool:
    """Whether weights that the configuration ties are stored both and differ: they count, then."""
    stored, tied = _renamed(model, files), tied_names(model)
    names = {*tied, *tied.values()}
    places = find_places(names, stored, model.base_model_prefix, {})
    pairs = [
        (places[name], places[other])
        for name, other in tied.items()
        if name in places and other in places
    ]
    return any(
        one != two and (one.shape != two.shape or not torch.equal(one.map(), two.map()))
        for one, two in pairs
    )


def _say_left_out(
    source: str,
    model: PreTrainedModel,
    stored: Mapping[str, Stored],
    places: Mapping[str, Stored],
) -> None:
    """Tell the log what a checkpoint holds that its decoder has no place for."""
    used = {place.name for place in places.values()}
    known = [re.compile(one) for one in model._keys_to_ignore_on_load_unexpected or ()]
    twins = tied_names(model)
    odd = sorted(
        place.name
        for name, place in stored.items()
        if place.name not in used
        and name not in twins
        and not any(one.search(name) for one in (*known, _DERIVED))
    )
    if odd:
        _log.warning(
            "'%s' stores %d tensor(s) that %s has no place for: they are neither used nor "
            "exported: %s",
            source,
            len(odd),
            type(model).__name__,
            ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else ""),
        )


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
