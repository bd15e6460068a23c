"""A pruned weight as short as it will be without loss, for files.

After the head of :mod:`fedprune.wire.arrays`: type of the values and bytes of the mask; the mask as
in :mod:`fedprune.wire.masks`; the values as :mod:`fedprune.wire.arrays`, first byte first. Each
value is turned by one bit so that its sign comes last: in bfloat16 and float32 the first byte is
the exponent, which takes about 1.5 of its 8 bits among survivors; signs and mantissas are noise.
"""

import struct

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.errors import ConfigError, WireError
from fedprune.wire.arrays import Kind, Reader, plane_parts, read_planes, seal
from fedprune.wire.changes import FLOATS, SparseWeight
from fedprune.wire.masks import BitMask, decode_mask, encode_mask

_KIND = Kind("a compact weight", b"FPCW", 1)
_HEAD = struct.Struct("<BI")  # place of the type in FLOATS, bytes of the mask
_GROUPS = (4, 8, 16)  # the M of N:M patterns that are looked for


def encode_weight(weight: SparseWeight) -> bytes:
    """Return a weight as bytes; an N:M mask takes the packed coding where that is shorter.

    Parameters
    ----------
    weight : SparseWeight
        Shape (d_out, d_in).
    """
    mask = _shortest_mask(weight.mask)
    words = weight.words()
    width = words.dtype.itemsize
    turned = words << 1 | words >> 8 * width - 1
    planes = [(turned >> 8 * place).astype(np.uint8) for place in reversed(range(width))]
    head = _HEAD.pack(FLOATS.index(weight.values.dtype), len(mask))
    return seal(_KIND, [head, mask, *plane_parts(planes)])


def decode_weight(data: bytes | memoryview, shape: tuple[int, int]) -> SparseWeight:
    """Read a weight that must have the given shape.

    Parameters
    ----------
    data : bytes or memoryview
        What :func:`encode_weight` made; may come from anyone.
    shape : tuple of int
        (d_out, d_in) of the linear that it is for.

    Raises
    ------
    WireError
        If anything differs from what the model says: length, checksum, type, mask, or a value is
        not finite.
    """
    reader, mask, dtype = _open(data, shape)
    width = dtype.itemsize
    planes = read_planes(reader, mask.survivors, width)
    reader.finish()
    turned: NDArray[np.unsignedinteger] = np.zeros(mask.survivors, dtype=f"u{width}")
    for plane in planes:
        turned <<= 8
        turned |= plane
    words = turned >> 1 | turned << 8 * width - 1
    return SparseWeight.from_words(words, dtype, mask)


def decode_weight_mask(data: bytes | memoryview, shape: tuple[int, int]) -> BitMask:
    """Read the mask of a weight only; parameters and errors as :func:`decode_weight`."""
    return _open(data, shape)[1]


def _open(data: bytes | memoryview, shape: tuple[int, int]) -> tuple[Reader, BitMask, torch.dtype]:
    """Return a reader that stands at the values, the mask and the values' type."""
    reader = Reader(data, _KIND)
    code, size = reader.unpack(_HEAD, "its type")
    if code >= len(FLOATS):
        raise WireError(f"the values' type must be below {len(FLOATS)}, got {code}.")
    return reader, decode_mask(reader.take(size, "the mask"), shape), FLOATS[code]


def _shortest_mask(mask: BitMask) -> bytes:
    for pattern in _patterns(mask):
        try:
            return encode_mask(mask, pattern)
        except WireError:
            continue  # some other group does not keep as many as the first one
    return encode_mask(mask, UNSTRUCTURED)


def _patterns(mask: BitMask) -> list[Pattern]:
    """Return the N:M patterns of a mask's first groups; shorter groups code shorter."""
    found = []
    first = np.unpackbits(mask.bits[:2], bitorder="little")
    for size in _GROUPS:
        if mask.shape[1] % size == 0:
            try:
                found.append(Pattern(int(first[:size].sum()), size))
            except ConfigError:
                continue  # all or none of the group
    return found
