"""What becomes of the linears of one decoder block, as a client made it or a server decided it.

After the head of :mod:`fedprune.wire.frame`: bytes of the masks; the masks as in
:mod:`fedprune.wire.block`; then for each linear, in the same order, its kind and one number.

====  =================  ==================  =====================================================
Kind  Change             Number              What follows
====  =================  ==================  =====================================================
0     ``BitMask``        0                   nothing
1     ``LinearUpdate``   total               nothing
2     the same, scaled   total               counts of the survivors as bit planes, lowest digit
                                             first: ``total.bit_length()`` planes, a bit a survivor
3     ``SparseWeight``   1 float32,          values of the survivors, little endian
                         2 bfloat16,
                         3 float16
====  =================  ==================  =====================================================
"""

import struct
from collections.abc import Mapping

import numpy as np

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.errors import WireError
from fedprune.wire.bitmask import BitMask, packed_size
from fedprune.wire.block import decode_block, encode_block
from fedprune.wire.change import Change, LinearUpdate, mask_of
from fedprune.wire.frame import Kind, Reader, seal
from fedprune.wire.sparse import FLOATS, SparseWeight

_KIND = Kind("an update", b"FPUP", 2)
_SIZE = struct.Struct("<I")  # bytes of the masks
_LINEAR = struct.Struct("<BI")  # kind, number
_MASK, _PLAIN, _SCALED, _VALUES = range(4)
_FRAME_BYTES = 512  # around one linear's change, and around all of them
_WIDEST = 4  # bytes of a value or a count


def encode_update(updates: Mapping[str, Change], pattern: Pattern = UNSTRUCTURED) -> bytes:
    """Return the bytes of a block's changes, in the order given.

    Parameters
    ----------
    updates : Mapping[str, BitMask or LinearUpdate or SparseWeight]
        Name of the linear inside the block -> what becomes of it.
    pattern : Pattern
        What all masks are known to be, as in :func:`fedprune.wire.block.encode_block`.
    """
    masks = encode_block({name: mask_of(change) for name, change in updates.items()}, pattern)
    parts: list[bytes | memoryview] = [_SIZE.pack(len(masks)), masks]
    for change in updates.values():
        parts += _linear_parts(change)
    return seal(_KIND, parts)


def decode_update(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Change]:
    """Read a block's changes, which must be for the linears of ``shapes`` in the same order.

    Parameters
    ----------
    data : bytes or memoryview
        What :func:`encode_update` made; may come from anyone.
    shapes : Mapping[str, tuple[int, int]]
        Name of each expected linear -> (d_out, d_in).

    Returns
    -------
    dict[str, BitMask or LinearUpdate or SparseWeight]
        The changes, in the order of ``shapes``, each of the kind that was sent. Masks may share
        memory with ``data``.

    Raises
    ------
    WireError
        If anything differs from what the model says: length, checksum, names, shapes, counts, or
        a value is not finite.
    """
    reader = Reader(data, _KIND)
    (size,) = reader.unpack(_SIZE, "the size of the masks")
    masks = decode_block(reader.take(size, "the masks"), shapes)
    changes: dict[str, Change] = {}
    for name, mask in masks.items():
        try:
            changes[name] = _read_linear(reader, mask)
        except WireError as error:
            raise WireError(f"linear '{name}': {error}") from None
    reader.finish()
    return changes


def most_update_bytes(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the most bytes that a block's changes can take; shapes as :func:`decode_update`."""
    return sum(
        _FRAME_BYTES + len(name.encode()) + packed_size(rows * columns) + _WIDEST * rows * columns
        for name, (rows, columns) in shapes.items()
    )


def _linear_parts(change: Change) -> list[bytes | memoryview]:
    if isinstance(change, BitMask):
        return [_LINEAR.pack(_MASK, 0)]
    if isinstance(change, SparseWeight):
        words = change.words()
        code = FLOATS.index(change.values.dtype) + 1
        little = words.astype(words.dtype.newbyteorder("<"), copy=False)
        return [_LINEAR.pack(_VALUES, code), little.data]
    if change.keeps is None:
        return [_LINEAR.pack(_PLAIN, change.total)]
    planes = [
        np.packbits(change.keeps >> digit & 1, bitorder="little").tobytes()
        for digit in range(change.total.bit_length())
    ]
    return [_LINEAR.pack(_SCALED, change.total), *planes]


def _read_linear(reader: Reader, mask: BitMask) -> Change:
    kind, number = reader.unpack(_LINEAR, "its kind")
    if kind == _PLAIN:
        return LinearUpdate(mask, None, number)
    if kind == _SCALED:
        return _read_scaled(reader, mask, number)
    if kind == _VALUES:
        return _read_values(reader, mask, number)
    if (kind, number) != (_MASK, 0):
        raise WireError(f"it must be of kind 0 to 3, and 0 of number 0, got {kind} of {number}.")
    return mask


def _read_scaled(reader: Reader, mask: BitMask, total: int) -> LinearUpdate:
    survivors, plane_size = mask.survivors, packed_size(mask.survivors)
    planes = reader.take(plane_size * total.bit_length(), "its counts")
    keeps = np.zeros(survivors, dtype=np.min_scalar_type(total))
    for digit in range(total.bit_length()):
        packed = np.frombuffer(planes, np.uint8)[digit * plane_size : (digit + 1) * plane_size]
        ones = np.unpackbits(packed, bitorder="little")
        if ones[survivors:].any():
            raise WireError("unused bits of its counts must be zero.")
        keeps |= ones[:survivors].astype(keeps.dtype) << digit
    return LinearUpdate(mask, keeps, total)


def _read_values(reader: Reader, mask: BitMask, code: int) -> SparseWeight:
    if not 1 <= code <= len(FLOATS):
        raise WireError(f"its values must be of type 1 to {len(FLOATS)}, got {code}.")
    dtype = FLOATS[code - 1]
    words = reader.array(f"<u{dtype.itemsize}", mask.survivors, "its values")
    return SparseWeight.from_words(words, dtype, mask)
