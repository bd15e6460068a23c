"""Bits by comparison group: one row of whole 64-bit words for each, padding bits zero.

The bits of a layer are one row as they are; rows of a matrix are padded to whole words; columns
are its rows transposed.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.methods.group_loops import transpose
from fedprune.methods.votes import Words
from fedprune.wire.masks import packed_size


def to_groups(plane: Words, shape: tuple[int, int], group: str) -> Words:
    """Return a bit per weight by group, shape (groups, ceil(size / 64)).

    Parameters
    ----------
    plane : Words
        Row-major bits of the matrix, least significant first, shape (ceil(d_out * d_in / 64),).
    shape : tuple of int
        (d_out, d_in).
    group : str
        'layer', 'row' or 'column'.
    """
    d_out, d_in = shape
    if group == "layer":
        return plane.reshape(1, -1)
    bits = plane.view(np.uint8)
    if d_in % 8 == 0:
        rows = bits[: d_out * d_in // 8].reshape(d_out, -1)
    else:
        flags = np.unpackbits(bits, count=d_out * d_in, bitorder="little").reshape(shape)
        rows = np.packbits(flags, axis=1, bitorder="little")
    words = _padded(rows)
    return words if group == "row" else _transposed(words, d_in)


def from_groups(words: Words, shape: tuple[int, int], group: str) -> NDArray[np.uint8]:
    """Undo `to_groups`, but for the padding: return ceil(d_out * d_in / 8) bytes, packed."""
    d_out, d_in = shape
    if group == "layer":
        return words.view(np.uint8)[0, : packed_size(d_out * d_in)]
    if group == "column":
        words = _transposed(words, d_out)
    rows = words.view(np.uint8)[:, : packed_size(d_in)]
    if d_in % 8 == 0:
        return np.ascontiguousarray(rows).reshape(-1)
    flags = np.unpackbits(rows, axis=1, count=d_in, bitorder="little")
    return np.packbits(flags, bitorder="little")


def full_groups(groups: int, size: int) -> Words:
    """Return rows in which all `size` bits are set."""
    words = np.full((groups, (size + 63) // 64), 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    if size % 64:
        words[:, -1] = (1 << size % 64) - 1
    return words


def _padded(rows: NDArray[np.uint8]) -> Words:
    """Return rows of bytes as rows of whole words, zeros added, without copying if need be."""
    count, size = rows.shape
    if size % 8 == 0 and rows.flags.c_contiguous:
        return rows.view(np.uint64)
    words = np.zeros((count, (size + 7) // 8), dtype=np.uint64)
    words.view(np.uint8)[:, :size] = rows
    return words


def _transposed(rows: Words, columns: int) -> Words:
    """Return the transpose of a bit matrix, shape (columns, ceil(rows / 64)) words."""
    count, width = rows.shape
    if count % 64:
        rows = np.concatenate((rows, np.zeros((-count % 64, width), dtype=np.uint64)))
    turned = np.empty((width * 64, len(rows) // 64), dtype=np.uint64)
    transpose(rows, turned)
    return turned[:columns]
