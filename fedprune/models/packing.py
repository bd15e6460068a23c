"""How a model's tensors become files of the compact form."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from fedprune.errors import WireError
from fedprune.models.layout import LinearRef
from fedprune.models.weights import TensorForm, write_file
from fedprune.wire.changes import FLOATS, SparseWeight
from fedprune.wire.compact import encode_weight
from fedprune.wire.masks import BitMask

_SHARD_BYTES = 500_000_000


def pack_weight(
    linear: LinearRef, stored: Tensor, mask: BitMask | None
) -> tuple[bytes, bool] | None:
    """Return a weight packed, and whether its mask is the one given; None if it stays as it is.

    Parameters
    ----------
    linear : LinearRef
        Which linear map it belongs to.
    stored : Tensor
        The weight as its module stores it, on the CPU.
    mask : BitMask or None
        The mask that it was pruned by. Not taken where it misses a weight, since somebody may have
        trained the model on; what is pruned then, and without a mask, is what is zero.
    """
    weight = linear.orient(stored).contiguous()
    if weight.dtype not in FLOATS:
        return None
    nonzero = BitMask.from_bool(_words(weight).numpy() != 0)  # a negative zero is no zero here
    try:
        if mask is not None and mask.shape == linear.shape:
            sparse = SparseWeight.from_dense(weight, mask)
            if torch.equal(_words(sparse.dense()), _words(weight)):
                return encode_weight(sparse), True
        data = encode_weight(SparseWeight.from_dense(weight, nonzero))
    except WireError:  # infinite, or NaN
        return None
    return (data, False) if len(data) < weight.nbytes else None


def in_order(form: Callable[[str], Tensor], names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors that some threads make, as many at a time as there are processors.

    Parameters
    ----------
    form : Callable[[str], Tensor]
        Makes a tensor.
    names : Sequence[str]
        What to make, in this order.
    """
    width = os.cpu_count() or 1
    with ThreadPoolExecutor(width) as threads:
        for start in range(0, len(names), width):
            part = names[start : start + width]
            yield from zip(part, threads.map(form, part), strict=True)


def write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> list[str]:
    """Write tensors to as many files as they need and return the files' names.

    Parameters
    ----------
    folder : Path
        Where the files go.
    tensors : Iterator[tuple[str, Tensor]]
        Names and tensors; a file's are in memory until it is written.
    """
    files: list[str] = []
    held: dict[str, Tensor] = {}

    def write() -> None:
        forms = [TensorForm.of(name, tensor) for name, tensor in held.items()]
        files.append(f"compact-{len(files) + 1:05d}.safetensors")
        write_file(folder / files[-1], forms, held.__getitem__)
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > _SHARD_BYTES:
            write()
        held[name] = tensor
    write()
    return files


def _words(weight: Tensor) -> Tensor:
    return weight.view(torch.int16 if weight.dtype.itemsize == 2 else torch.int32)
