"""Messages that were damaged on the way, or made to look as if they were not."""

import struct
import zlib
from collections.abc import Callable

import pytest

from fedprune.errors import WireError

HEAD = 10  # magic, version, CRC-32 of the rest


def check_damage(decode: Callable[[bytes], object], data: bytes) -> None:
    """Check that a decoder refuses every truncation, one byte more, and every flipped bit."""
    decode(data)
    broken = [data[:length] for length in range(len(data))] + [data + b"\0"]
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        broken.append(bytes(flipped))
    for one in broken:
        with pytest.raises(WireError):
            decode(one)


def resealed(data: bytes, place: int, value: bytes, remove: int | None = None) -> bytes:
    """Replace bytes, as many as come unless told, and make the checksum right again.

    As somebody would who means harm.
    """
    stop = place + (len(value) if remove is None else remove)
    body = data[HEAD:place] + value + data[stop:]
    return data[:6] + struct.pack("<I", zlib.crc32(body)) + body


def check_resealed_damage(decode: Callable[[bytes], object], data: bytes) -> None:
    """Check that what somebody reseals is refused or read, but never fails in another way.

    Every truncation is refused.
    """
    for length in range(HEAD, len(data)):
        with pytest.raises(WireError):
            decode(resealed(data[:length], length, b""))
    for place in range(HEAD, len(data)):
        for value in (0, 0x7F, 0x80, 0xFF):
            try:
                decode(resealed(data, place, bytes([value])))
            except WireError:
                pass
