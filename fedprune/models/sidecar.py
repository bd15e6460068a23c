"""The masks of a pruned model as a file of their own: one bit a weight, beside the checkpoint.

A safetensors file of flat uint8 tensors under the weights' full names; shapes, bit order and
sparsity are in its metadata, and everything is checked when it is read. The masks of an export also
say which dense model they are of. Equal masks give equal files: the metadata is one JSON entry,
since safetensors orders entries at random.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fedprune.errors import ModelError, WireError
from fedprune.models.weights import save_tensors
from fedprune.wire.masks import BitMask

_FORMAT = "fedprune-masks"
_ENTRY = "fedprune"  # the one metadata entry
_VERSION = "1"
_BIT_ORDER = "little"  # bit 0 of a byte is the first of its eight weights, row by row
_OWN_KEYS = ("format", "version", "bit_order", "prefix", "shapes", "sparsity")


class SidecarWriter:
    """Writes masks block by block to a file that appears whole, and is on the disk, or not at all.

    Until it is closed the bits lie in a file beside it: all masks may not fit into memory.

    `path`: the file, for example ``masks.safetensors``; an older one is replaced. `prefix`: where
    the blocks are in the model, for example ``model.layers``.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self._shapes: dict[str, tuple[int, int]] = {}
        self._survivors = 0
        self._gathered = path.with_name(f".{path.name}.bits")
        self._file = self._gathered.open("wb")

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Delete what was gathered."""
        self._file.close()
        self._gathered.unlink(missing_ok=True)

    def add(self, block: int, masks: Mapping[str, BitMask]) -> None:
        """Add a block's masks, True where a weight survives."""
        for linear, mask in masks.items():
            self._shapes[f"{self._prefix}.{block}.{linear}.weight"] = mask.shape
            self._survivors += mask.survivors
            self._file.write(mask.bits.tobytes())

    def close(self, metadata: Mapping[str, object] | None = None) -> None:
        """Write the file; ModelError if ``metadata`` uses a key of the format itself."""
        taken = sorted(set(metadata or {}) & set(_OWN_KEYS))
        if taken:
            raise ModelError(f"Sidecar metadata may not set {', '.join(taken)}: the format does.")
        header = {
            **(metadata or {}),
            "format": _FORMAT,
            "version": _VERSION,
            "bit_order": _BIT_ORDER,
            "prefix": self._prefix,
            "shapes": self._shapes,
            "sparsity": _sparsity(self._shapes.values(), self._survivors),
        }
        self._file.close()
        bits = np.memmap(self._gathered, mode="c") if self._shapes else np.empty(0, np.uint8)
        tensors, start = {}, 0
        for name, (rows, columns) in self._shapes.items():
            stop = start + -(-rows * columns // 8)
            tensors[name] = torch.from_numpy(bits[start:stop])
            start = stop
        save_tensors(self._path, tensors, {_ENTRY: json.dumps(header)})


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, object]]]:
    """Open a file of masks and give its checked metadata with it."""
    if not path.is_file():
        raise ModelError(f"No mask sidecar at '{path}'. Give the masks.safetensors of an export.")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file, _header(path, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error


def sidecar_metadata(path: Path) -> dict[str, object]:
    """Return what a file of masks says about itself; errors as :func:`read_sidecar`."""
    with _opened(path) as (_, header):
        return header


def sidecar_shapes(path: Path) -> dict[str, tuple[int, int]]:
    """Return the shape of each mask, name -> (d_out, d_in); errors as :func:`read_sidecar`."""
    with _opened(path) as (file, header):
        return _shapes(path, header, set(file.keys()))


def read_sidecar(path: Path) -> dict[int, dict[str, BitMask]]:
    """Read masks that a :class:`SidecarWriter` wrote.

    Returns block -> linear -> mask. Raises ModelError if the file is missing or damaged, of another
    format or version, or contradicts itself.
    """
    named: dict[str, BitMask] = {}
    with _opened(path) as (file, header):
        shapes = _shapes(path, header, set(file.keys()))
        for name, shape in shapes.items():
            try:
                named[name] = BitMask(file.get_tensor(name), shape)
            except WireError as error:
                raise _damaged(path, f"`{name}`: {error}") from error
    sparsity = _sparsity(shapes.values(), sum(mask.survivors for mask in named.values()))
    if header.get("sparsity") != sparsity:
        raise _damaged(path, f"its sparsity is {sparsity!r}, recorded is {header.get('sparsity')}")
    prefix = str(header["prefix"])
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.(.+)\.weight")
    masks: dict[int, dict[str, BitMask]] = {}
    for name, mask in named.items():
        match = pattern.fullmatch(name)
        if match is None:
            raise _damaged(path, f"`{name}` is not a weight in the blocks of `{prefix}`")
        masks.setdefault(int(match[1]), {})[match[2]] = mask
    return masks


def _sparsity(shapes: Iterable[tuple[int, int]], survivors: int) -> float:
    total = sum(rows * columns for rows, columns in shapes)
    return 1 - survivors / total if total else 0.0


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the checked entry of the metadata."""
    try:
        header = json.loads(metadata.get(_ENTRY, "{}"))
    except ValueError:
        raise _damaged(path, "its metadata is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its metadata is not a table")
    expected = {"format": _FORMAT, "version": _VERSION, "bit_order": _BIT_ORDER}
    for key, value in expected.items():
        if header.get(key) != value:
            raise ModelError(
                f"Mask sidecar '{path}': `{key}` must be '{value}', got '{header.get(key)}'. "
                "Read it with the release of fedprune that wrote it."
            )
    if "prefix" not in header:
        raise _damaged(path, "`prefix` is missing")
    return header


def _shapes(
    path: Path, header: Mapping[str, object], stored: set[str]
) -> dict[str, tuple[int, int]]:
    """Return the recorded shapes, which must be those of the tensors in the file."""
    listed = header.get("shapes")
    try:
        if not isinstance(listed, dict):
            raise TypeError
        shapes = {str(name): (int(rows), int(cols)) for name, (rows, cols) in listed.items()}
    except (ValueError, TypeError) as error:
        raise _damaged(path, "`shapes` is not a table of [d_out, d_in]") from error
    if set(shapes) != stored:
        odd = sorted(set(shapes) ^ stored)
        raise _damaged(path, f"`shapes` and tensors differ in {', '.join(odd[:3])}")
    return shapes


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"Mask sidecar '{path}' is damaged: {what}. Export the model again.")
