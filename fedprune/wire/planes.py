"""Byte planes: the same byte of many numbers side by side, each plane as short as it will be."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.wire.frame import Reader

_COUNT = struct.Struct("<B")  # planes that follow
_SIZE = struct.Struct("<I")  # bytes of a plane


def plane_parts(planes: Sequence[NDArray[np.uint8]]) -> list[bytes]:
    """Return planes as parts of a message; those of zeros at the end are left out.

    Parameters
    ----------
    planes : Sequence[NDArray[np.uint8]]
        Up to 255 vectors of the same length.
    """
    count = max((number for number, plane in enumerate(planes, start=1) if plane.any()), default=0)
    parts = [_COUNT.pack(count)]
    for plane in planes[:count]:
        body = _shortest(plane.tobytes())
        parts += [_SIZE.pack(len(body)), body]
    return parts


def read_planes(reader: Reader, width: int, count: int) -> NDArray[np.uint8]:
    """Return what :func:`plane_parts` wrote, shape (count, width).

    Raises
    ------
    WireError
        If there are more planes, or one is of another length.
    """
    planes = np.zeros((count, width), dtype=np.uint8)
    (sent,) = reader.unpack(_COUNT, "the number of planes")
    if sent > count:
        raise WireError(f"there are {count} planes at most, got {sent}.")
    for plane in planes[:sent]:
        (size,) = reader.unpack(_SIZE, "the size of a plane")
        plane[:] = np.frombuffer(_plain(reader.take(size, "a plane"), width), dtype=np.uint8)
    return planes


def _shortest(plane: bytes) -> bytes:
    # Neighbouring columns have nothing in common: there are no repetitions to look for.
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=zlib.Z_HUFFMAN_ONLY)
    coded = coder.compress(plane) + coder.flush()
    return min(plane, coded, key=len)


def _plain(body: memoryview, width: int) -> bytes | memoryview:
    if len(body) == width:
        return body
    if len(body) > width:
        raise WireError(f"a plane has {width} bytes at most, got {len(body)}.")
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plane = decoder.decompress(body, width + 1)  # one more than may come, and never a flood
    except zlib.error:
        raise WireError("a plane cannot be decompressed.") from None
    if len(plane) != width or not decoder.eof or decoder.unused_data:
        raise WireError(f"a plane must have {width} bytes when decompressed.")
    return plane
