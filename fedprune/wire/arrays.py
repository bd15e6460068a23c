"""The frame that messages share: a head with a checksum, then fields that are read in order.

Little endian. Head: magic (4 bytes), version (2), CRC-32 of all that follows (4).
"""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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


T = TypeVar("T")

_GROUPS = struct.Struct("<H")  # groups
_GROUP = struct.Struct("<HQ")  # linears, tokens
_MOST_TOKENS = (1 << 63) - 1


def check_group(linears: Sequence[str], tokens: int) -> None:
    """Raise ``WireError`` unless there are linears, each once, and tokens."""
    if not linears or len(set(linears)) < len(linears):
        raise WireError(f"An input enters one linear or more, each once, got {tuple(linears)}.")
    if not 1 <= tokens <= _MOST_TOKENS:
        raise WireError(f"An input has from 1 to 2**63 - 1 tokens, got {tokens}.")


def check_columns(sums: NDArray[np.float32], what: str = "Sums of squares") -> None:
    """Raise ``WireError`` unless this is a float32 vector, finite and nowhere negative."""
    if sums.dtype != np.float32 or sums.ndim != 1:
        raise WireError(
            f"{what} must be a vector of float32 numbers, got {sums.dtype} of shape {sums.shape}."
        )
    # A negative zero would become a negative score. NaN is not below infinity, so it fails.
    if np.signbit(sums).any() or not sums.max(initial=0) < np.inf:
        raise WireError(f"{what} must be finite and not negative.")


def count_part(groups: int) -> bytes:
    """Return the first part of a message of so many groups."""
    return _GROUPS.pack(groups)


def head_parts(linears: Sequence[str], tokens: int) -> list[bytes]:
    """Return the parts that stand before what is sent of a group."""
    parts = [_GROUP.pack(len(linears), tokens)]
    for name in linears:
        parts += text_parts(name)
    return parts


def read_groups(
    reader: Reader,
    shapes: Mapping[str, tuple[int, int]],
    read: Callable[[tuple[str, ...], int, int], T],
) -> list[T]:
    """Read a whole message of groups that together have every linear exactly once.

    Parameters
    ----------
    reader : Reader
        Stands at the number of groups.
    shapes : Mapping[str, tuple[int, int]]
        Name of each expected linear -> (d_out, d_in).
    read : Callable
        (linears, tokens, d_in) -> what follows a group's head.

    Raises
    ------
    WireError
        If names, sizes or tokens are not possible, a linear is missing or there twice, inputs of
        one group differ in size, or anything follows.
    """
    (count,) = reader.unpack(_GROUPS, "the number of inputs")
    left = {name.encode(): (name, d_in) for name, (_, d_in) in shapes.items()}
    found = []
    for _ in range(count):
        linears, tokens, d_in = _read_head(reader, left)
        try:
            found.append(read(linears, tokens, d_in))
        except WireError as error:
            raise WireError(f"the input of '{linears[0]}': {error}") from None
    if left:
        raise WireError(f"nothing came for {', '.join(name for name, _ in left.values())}.")
    reader.finish()
    return found


def _read_head(
    reader: Reader, left: dict[bytes, tuple[str, int]]
) -> tuple[tuple[str, ...], int, int]:
    """Return linears, tokens and d_in of the next group; its linears are left no more."""
    count, tokens = reader.unpack(_GROUP, "an input's head")
    known = []
    for _ in range(count):
        # What is not known is not quoted: it comes from the other side.
        name = reader.text("a linear's name")
        if name not in left:
            raise WireError("there is a linear that the block has not, or one is there twice.")
        known.append(left.pop(name))
    linears = tuple(name for name, _ in known)
    check_group(linears, tokens)
    if len({d_in for _, d_in in known}) > 1:
        raise WireError(f"{', '.join(linears)} cannot share an input: their d_in differ.")
    return linears, tokens, known[0][1]
