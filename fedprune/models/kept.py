"""Which rows, columns and experts of a dense model a smaller one has, in a file beside it.

A safetensors file of boolean vectors: ``{tensor}.{dimension}`` says for each row, column or expert
of one of the dense model's tensors whether it remains, True if so. Tensors that are not named
remain whole, as far as their block does. Its metadata says of which dense model that is, which
blocks remain, and whether what remains has its old values: then the dense model and this file are
the smaller one (:func:`fedprune.models.reshape.apply_kept`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedprune.errors import ModelError
from fedprune.models.weights import save_tensors

KEPT = Path("fedprune", "kept.safetensors")
"""Where an export with fewer units says which of them remain."""

_ENTRY = "fedprune"  # the one metadata entry, since safetensors orders entries at random
_FORMAT = {"format": "fedprune-kept", "version": "1"}

Cut = Callable[[str, Tensor], Tensor | None]


@dataclass
class KeptWriter:
    """Finds out, tensor by tensor, what remains of a dense model."""

    # ``{tensor}.{dimension}`` -> what remains, bool
    vectors: dict[str, Tensor] = field(default_factory=dict)
    values_kept: bool = True  # whether all that remains has the values that it had

    def add(self, name: str, dense: Tensor, left: Tensor, cut: Cut) -> None:
        """Take in a tensor that remains.

        `dense`, `left`: as the dense model has it, and what is left of it. `cut`: leaves of a
        tensor what remains; asked with numbers of rows in place of weights.
        """
        found: dict[int, Tensor] = {}
        if left.dim() == dense.dim():
            for dim in range(dense.dim()):
                if left.shape[dim] != dense.shape[dim]:
                    remains = _remaining(name, dense, dim, cut)
                    if remains is not None:
                        found[dim] = remains
        expected = chosen(dense, found)
        if expected.shape != left.shape or not torch.equal(expected, left):
            self.values_kept = False
        self.vectors |= {f"{name}.{dim}": remains for dim, remains in found.items()}

    def close(self, path: Path, origin: Mapping[str, object]) -> None:
        """Write the file; ``origin`` says of which model that is, JSON values."""
        survivors = "kept" if self.values_kept else "changed"
        header = {**origin, **_FORMAT, "survivors": survivors}
        save_tensors(path, self.vectors, {_ENTRY: json.dumps(header)})


def chosen(tensor: Tensor, remains: Mapping[int, Tensor]) -> Tensor:
    """Return what is left of a tensor: dimension -> what remains along it, bool."""
    for dim, some in remains.items():
        tensor = tensor.index_select(dim, torch.nonzero(some).flatten())
    return tensor


def read_kept(path: Path) -> tuple[dict[str, Any], dict[str, dict[int, Tensor]]]:
    """Return what such a file says.

    Returns `header`: ``model`` (``weights``, ``config``, ``dtype``), ``blocks`` and ``num_blocks``,
    ``config``, ``survivors`` (``kept`` or ``changed``). Returns `remains`: tensor of the dense
    model -> dimension -> what remains along it, bool. Raises ModelError if it is missing, damaged,
    of another format or version.
    """
    if not path.is_file():
        raise ModelError(f"There is no '{path}'. Give the kept.safetensors of an export.")
    remains: dict[str, dict[int, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
            if {key: header.get(key) for key in _FORMAT} != _FORMAT:
                raise ValueError("it is of another format or version")
            blocks, total = header["blocks"], header["num_blocks"]
            if not all(type(one) is int and 0 <= one < total for one in blocks):
                raise ValueError(f"`blocks` must be some of 0 to {total - 1}")
            if not isinstance(header["config"], dict) or not isinstance(header["model"], dict):
                raise TypeError("`config` and `model` must be tables")
            for key in file.keys():  # noqa: SIM118 - no mapping
                name, _, dim = key.rpartition(".")
                vector = file.get_tensor(key)
                if vector.dtype != torch.bool or vector.dim() != 1 or not name:
                    raise ValueError(f"`{key}` must be a boolean vector")
                remains.setdefault(name, {})[int(dim)] = vector
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"'{path}' is damaged: {error}. Export the model again.") from error
    return header, remains


def is_kept(path: Path) -> bool:
    """Whether a file is, by its name and its metadata, one of these and not one of masks."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
    except (SafetensorError, OSError, ValueError):
        return False
    return isinstance(header, dict) and header.get("format") == _FORMAT["format"]


def _remaining(name: str, dense: Tensor, dim: int, cut: Cut) -> Tensor | None:
    """Return what remains along a dimension, bool; None where the result is no selection."""
    size = dense.shape[dim]
    shape = [size if one == dim else 1 for one in range(dense.dim())]
    numbers = torch.arange(size, dtype=torch.int32).reshape(shape).expand(dense.shape)
    left = cut(name, numbers)
    if left is None or left.dim() != dense.dim() or left.numel() == 0:
        return None
    lines = left.movedim(dim, 0).reshape(left.shape[dim], -1)
    line = lines[:, 0]
    if not torch.equal(lines, line[:, None].expand_as(lines)) or not bool((line.diff() > 0).all()):
        return None
    remains = torch.zeros(size, dtype=torch.bool)
    remains[line.long()] = True
    return remains
