"""Bits by comparison group: one row of whole 64-bit words for each, padding bits zero.

The bits of a layer are one row as they are; rows of a matrix are padded to whole words; columns
are its rows transposed, eight bits by eight.
"""

import numpy as np
from numpy.typing import NDArray

from fedprune.aggregation.votes import Words
from fedprune.wire.bitmask import packed_size


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
    return _padded(rows if group == "row" else _transposed(rows, d_in))


def from_groups(words: Words, shape: tuple[int, int], group: str) -> NDArray[np.uint8]:
    """Undo `to_groups`, but for the padding: return ceil(d_out * d_in / 8) bytes, packed."""
    d_out, d_in = shape
    packed = words.view(np.uint8)
    if group == "layer":
        return packed[0, : packed_size(d_out * d_in)]
    if group == "column":
        packed = _transposed(packed[:, : packed_size(d_out)], d_out)
    rows = packed[:, : packed_size(d_in)]
    if d_in % 8 == 0:
        return np.ascontiguousarray(rows).reshape(-1)
    flags = np.unpackbits(rows, axis=1, count=d_in, bitorder="little")
    return np.packbits(flags, bitorder="little")


def full_groups(groups: int, size: int) -> Words:
    """Return rows in which all `size` bits are set."""
    row = np.packbits(np.ones(size, dtype=np.bool_), bitorder="little")
    return np.repeat(_padded(row.reshape(1, -1)), groups, axis=0)


def _padded(rows: NDArray[np.uint8]) -> Words:
    """Return rows of bytes as rows of whole words, zeros added, without copying if need be."""
    count, size = rows.shape
    if size % 8 == 0 and rows.flags.c_contiguous:
        return rows.view(np.uint64)
    words = np.zeros((count, (size + 7) // 8), dtype=np.uint64)
    words.view(np.uint8)[:, :size] = rows
    return words


def _transposed(rows: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Return the transpose of a bit matrix, shape (columns, ceil(rows / 8)) bytes."""
    count, size = rows.shape
    if count % 8:
        rows = np.concatenate((rows, np.zeros((-count % 8, size), dtype=np.uint8)))
    # One word for each tile of 8 x 8 bits: byte i is row i. Copied: it is changed in place.
    tiles = rows.T.copy().view(np.uint64)
    # Swap single bits, then squares of two, then of four across the diagonal.
    for shift, mask in (7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0):
        swap = (tiles ^ tiles >> np.uint64(shift)) & np.uint64(mask)
        tiles ^= swap
        tiles ^= swap << np.uint64(shift)
    lanes = tiles.view(np.uint8).reshape(size, -1, 8)
    turned = np.empty((size, 8, lanes.shape[1]), dtype=np.uint8)
    for lane in range(8):
        turned[:, lane] = lanes[:, :, lane]
    return turned.reshape(size * 8, -1)[:columns]
