"""Messages that were damaged on the way, or made to look as if they were not."""

import json
import random
import zlib
from collections.abc import Callable

import pytest

from fedprune.errors import WireError

CHECKSUM = slice(34, 42)
_MOST = 400  # places that are tried of one message


def check_damage(decode: Callable[[bytes], object], data: bytes) -> None:
    """Check that a decoder refuses truncations, one byte more, and flipped bits.

    All of them in a short message; in a longer one a draw of each kind, the ends always among them.
    """
    decode(data)
    lengths, bits = _some(len(data)), _some(8 * len(data))
    broken = [data[:length] for length in lengths] + [data + b"\0"]
    for place in bits:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        broken.append(bytes(flipped))
    for one in broken:
        with pytest.raises(WireError):
            decode(one)


def check_sealed_damage(decode: Callable[[bytes], object], data: bytes) -> None:
    """Check that what somebody seals again is refused or read, but never fails in another way.

    Every truncation is refused.
    """
    for length in _some(len(data)):
        with pytest.raises(WireError):
            decode(sealed(data[:length]))
    for place in _some(len(data)):
        for value in (0, 0x7F, 0x80, 0xFF):
            changed = bytearray(data)
            changed[place] = value
            try:
                decode(sealed(bytes(changed)))
            except WireError:
                pass


def _some(size: int) -> list[int]:
    places = range(size)
    if size <= _MOST:
        return list(places)
    return [0, size - 1, *random.Random(size).sample(places, _MOST)]


def sealed(data: bytes) -> bytes:
    """Return a message with the checksum that its bytes have, as somebody who means harm would."""
    if len(data) < CHECKSUM.stop:
        return data
    blank = data[: CHECKSUM.start] + b"0" * 8 + data[CHECKSUM.stop :]
    checksum = f"{zlib.crc32(blank[8:]):08x}".encode()
    return data[: CHECKSUM.start] + checksum + data[CHECKSUM.stop :]


def split(data: bytes) -> tuple[bytes, bytes]:
    """Return a message's header and the bytes of its arrays."""
    size = int.from_bytes(data[:8], "little")
    return data[8 : 8 + size], data[8 + size :]


def message(header: bytes | dict, body: bytes = b"") -> bytes:
    """Return a sealed message of any header, one that JSON makes if it is a dictionary."""
    if isinstance(header, dict):
        entries = {"__metadata__": {"crc32": "0" * 8}} | header
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
    return sealed(len(header).to_bytes(8, "little") + header + body)
