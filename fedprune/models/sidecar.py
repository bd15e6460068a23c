"""The masks of a pruned model as a file of their own: one bit a weight, beside the checkpoint.

A safetensors file of flat uint8 tensors under the weights' full names; shapes, bit order and
sparsity are in its metadata, and everything is checked when it is read. Equal masks give equal
files: the metadata is one JSON entry, since safetensors orders entries at random.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fedprune.errors import ModelError, WireError
from fedprune.models.weights import TensorForm, write_file
from fedprune.wire.masks import BitMask

_FORMAT = "fedprune-masks"
_ENTRY = "fedprune"  # the one metadata entry
_VERSION = "1"
_BIT_ORDER = "little"  # bit 0 of a byte is the first of its eight weights, row by row
_OWN_KEYS = ("format", "version", "bit_order", "prefix", "shapes", "sparsity")


def write_sidecar(
    path: Path,
    masks: Mapping[int, Mapping[str, BitMask]],
    prefix: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write masks to a file that appears whole, and is on the disk, or not at all.

    Parameters
    ----------
    path : Path
        The file, for example ``masks.safetensors``; an older one is replaced.
    masks : Mapping[int, Mapping[str, BitMask]]
        Block -> linear -> mask, True where a weight survives; gone through twice, block by
        block.
    prefix : str
        Where the blocks are in the model, for example ``model.layers``.
    metadata : Mapping[str, str], optional
        Whatever else the file shall say about itself.

    Raises
    ------
    ModelError
        If ``metadata`` uses a key of the format itself.
    """
    taken = sorted(set(metadata or {}) & set(_OWN_KEYS))
    if taken:
        raise ModelError(f"Sidecar metadata may not set {', '.join(taken)}: the format does.")
    # Twice through the masks, since the header comes first and they may not fit into memory.
    shapes, sizes, survivors = {}, {}, 0
    for name, mask in _named(masks, prefix):
        shapes[name], sizes[name] = mask.shape, len(mask.bits)
        survivors += mask.survivors
    header = {
        **(metadata or {}),
        "format": _FORMAT,
        "version": _VERSION,
        "bit_order": _BIT_ORDER,
        "prefix": prefix,
        "shapes": shapes,
        "sparsity": _sparsity(shapes.values(), survivors),
    }
    entry = {_ENTRY: json.dumps(header)}
    forms = [TensorForm(name, torch.uint8, (size,)) for name, size in sizes.items()]
    again = _named(masks, prefix)

    def bits(_name: str) -> torch.Tensor:
        return torch.from_numpy(next(again)[1].bits.copy())  # decoded ones are read-only

    partial = path.with_name(f".{path.name}.partial")
    try:
        write_file(partial, forms, bits, entry)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_sidecar(path: Path) -> dict[int, dict[str, BitMask]]:
    """Read masks that :func:`write_sidecar` wrote.

    Parameters
    ----------
    path : Path
        The sidecar file.

    Returns
    -------
    dict[int, dict[str, BitMask]]
        Block -> linear -> mask.

    Raises
    ------
    ModelError
        If the file is missing or damaged, of another format or version, or contradicts itself.
    """
    if not path.is_file():
        raise ModelError(f"No mask sidecar at '{path}'. Give the masks.safetensors of an export.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = _header(path, file.metadata() or {})
            shapes = _shapes(path, header, set(file.keys()))
            named = {
                name: _mask(path, name, file.get_tensor(name), shape)
                for name, shape in shapes.items()
            }
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    sparsity = _sparsity(shapes.values(), sum(mask.survivors for mask in named.values()))
    if header.get("sparsity") != sparsity:
        raise _damaged(path, f"its sparsity is {sparsity!r}, recorded is {header.get('sparsity')}")
    return _by_block(path, str(header["prefix"]), named)


def _named(
    masks: Mapping[int, Mapping[str, BitMask]], prefix: str
) -> Iterator[tuple[str, BitMask]]:
    for block, linears in masks.items():
        for linear, mask in linears.items():
            yield f"{prefix}.{block}.{linear}.weight", mask


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


def _mask(path: Path, name: str, bits: NDArray[np.uint8], shape: tuple[int, int]) -> BitMask:
    try:
        return BitMask(bits, shape)
    except WireError as error:
        raise _damaged(path, f"`{name}`: {error}") from error


def _by_block(
    path: Path, prefix: str, named: Mapping[str, BitMask]
) -> dict[int, dict[str, BitMask]]:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.(.+)\.weight")
    masks: dict[int, dict[str, BitMask]] = {}
    for name, mask in named.items():
        match = pattern.fullmatch(name)
        if match is None:
            raise _damaged(path, f"`{name}` is not a weight in the blocks of `{prefix}`")
        masks.setdefault(int(match[1]), {})[match[2]] = mask
    return masks


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"Mask sidecar '{path}' is damaged: {what}. Export the model again.")
