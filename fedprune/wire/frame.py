"""The frame that messages share: a head with a checksum, then fields that are read in order.

Little endian. Head: magic (4 bytes), version (2), CRC-32 of all that follows (4).
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError

HEAD = struct.Struct("<4sHI")
_TEXT = struct.Struct("<H")  # bytes of a text


@dataclass(frozen=True)
class Kind:
    """A kind of message.

    Parameters
    ----------
    label : str
        What errors call it, for example "an update".
    magic : bytes
        Its first four bytes.
    version : int
        Of its layout.
    """

    label: str
    magic: bytes
    version: int


def seal(kind: Kind, parts: Sequence[bytes | memoryview]) -> bytes:
    """Return a message of contiguous parts, copied once."""
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join((HEAD.pack(kind.magic, kind.version, checksum), *parts))


def text_parts(text: str) -> tuple[bytes, bytes]:
    """Return the parts that :meth:`Reader.is_text` reads."""
    label = text.encode()
    return _TEXT.pack(len(label)), label


class Reader:
    """Reads a sealed message from front to back; it never reads past the end.

    Parameters
    ----------
    data : bytes or memoryview
        What :func:`seal` made; may come from anyone.
    kind : Kind
        What it must be.

    Raises
    ------
    WireError
        If it is another message, or damaged.
    """

    def __init__(self, data: bytes | memoryview, kind: Kind) -> None:
        view = memoryview(data)
        if not view.c_contiguous:
            raise WireError(f"{kind.label} must be contiguous bytes.")
        self._view = view.cast("B")
        self._kind = kind
        self._place = 0
        magic, version, checksum = HEAD.unpack(self.take(HEAD.size, "its head"))
        if magic != kind.magic or version != kind.version:
            # What else it starts with is not quoted: it comes from the other side.
            found = f"version {version}" if magic == kind.magic else "something else"
            raise WireError(
                f"{kind.label} starts with {kind.magic!r} version {kind.version}, got {found}. "
                "Run the same release of fedprune everywhere."
            )
        summed = zlib.crc32(self._view[HEAD.size :])
        if summed != checksum:
            raise WireError(f"{kind.label}'s CRC-32 must be 0x{checksum:08x}, got 0x{summed:08x}.")

    def take(self, size: int, what: str) -> memoryview:
        """Return the next bytes; ``what`` they are is for the error."""
        stop = self._place + size
        if stop > len(self._view):
            raise WireError(
                f"{self._kind.label} ends too early: {what} would end at byte {stop}, there are "
                f"{len(self._view)}."
            )
        part = self._view[self._place : stop]
        self._place = stop
        return part

    def unpack(self, layout: struct.Struct, what: str) -> tuple[int, ...]:
        """Return the next fields."""
        return layout.unpack(self.take(layout.size, what))

    def array(self, dtype: str, count: int, what: str) -> NDArray[np.generic]:
        """Return a one-dimensional array: read-only, maybe unaligned, sharing memory."""
        item = np.dtype(dtype)
        return np.ndarray((count,), item, self.take(count * item.itemsize, what))

    def text(self, what: str) -> bytes:
        """Return the next text, not decoded: it comes from the other side."""
        (size,) = self.unpack(_TEXT, what)
        return bytes(self.take(size, what))

    def finish(self) -> None:
        """Refuse bytes that nobody asked for."""
        left = len(self._view) - self._place
        if left:
            raise WireError(f"{left} bytes follow the end of {self._kind.label}, expected none.")
