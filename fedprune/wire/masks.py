"""A mask held at one bit a weight, the only form in which masks are stored, sent and counted.

Weight ``i`` of the row-major weight matrix is bit ``i % 8`` (least significant first) of byte
``i // 8``; ``1`` means that the weight survives. Unused bits of the last byte are zero, so that
equal masks are equal bytes and a population count needs no correction.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.errors import ConfigError, WireError
from fedprune.wire.nm import Coding, coding, pack, unpack


@dataclass(frozen=True, eq=False)
class BitMask:
    """The mask of one linear.

    Parameters
    ----------
    bits : NDArray[np.uint8]
        Packed mask, shape (ceil(d_out * d_in / 8),), padding bits zero.
    shape : tuple of int
        (d_out, d_in) of the weight.

    Raises
    ------
    WireError
        If type, length or padding of `bits` do not fit `shape`.
    """

    bits: NDArray[np.uint8]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        """Refuse bits that are no mask of this shape."""
        d_out, d_in = self.shape
        if d_out < 1 or d_in < 1:
            raise WireError(f"A mask's shape must be positive, got {d_out}x{d_in}.")
        expected = packed_size(self.numel)
        if self.bits.dtype != np.uint8 or self.bits.shape != (expected,):
            raise WireError(
                f"A mask of {d_out}x{d_in} is {expected} bytes of uint8, "
                f"got {self.bits.dtype} of shape {self.bits.shape}."
            )
        used = self.numel % 8
        if used and int(self.bits[-1]) >> used:
            raise WireError(
                f"A mask of {d_out}x{d_in} uses {used} bits of its last byte, "
                f"but a bit above them is set: 0x{int(self.bits[-1]):02x}."
            )

    @property
    def checksum(self) -> int:
        """CRC-32 of the packed bits, by which two sides tell whether they made the same mask."""
        return zlib.crc32(self.bits.tobytes())

    @classmethod
    def from_bool(cls, mask: NDArray[np.bool_]) -> "BitMask":
        """Pack a boolean mask of shape (d_out, d_in), True = survives."""
        d_out, d_in = mask.shape
        return cls(np.packbits(mask, bitorder="little"), (d_out, d_in))

    def to_bool(self) -> NDArray[np.bool_]:
        """Return the boolean mask, shape (d_out, d_in), True = survives."""
        flat = np.unpackbits(self.bits, count=self.numel, bitorder="little")
        return flat.view(np.bool_).reshape(self.shape)

    @property
    def numel(self) -> int:
        """Number of weights, d_out * d_in."""
        return self.shape[0] * self.shape[1]

    @property
    def survivors(self) -> int:
        """Number of weights that survive."""
        return popcount(self.bits)

    @property
    def sparsity(self) -> float:
        """Share of weights that are pruned."""
        return 1.0 - self.survivors / self.numel

    def row_survivors(self) -> NDArray[np.int64]:
        """Return the number of survivors of each row (output), shape (d_out,)."""
        d_out, d_in = self.shape
        ones: NDArray[np.uint8] | NDArray[np.bool_]
        if d_in % 64 == 0:
            ones = np.bitwise_count(self.bits.view(np.uint64).reshape(d_out, -1))
        else:
            ones = self.to_bool()
        survivors: NDArray[np.int64] = ones.sum(axis=1, dtype=np.int64)
        return survivors

    def __eq__(self, other: object) -> bool:
        """Whether both masks have the same shape and bits."""
        if not isinstance(other, BitMask):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.bits, other.bits)

    __hash__ = None  # type: ignore[assignment]  # equality looks at the bits: not hashable


def packed_size(numel: int) -> int:
    """Return the bytes that `numel` packed weights take."""
    return (numel + 7) // 8


def popcount(bits: NDArray[np.uint8]) -> int:
    """Return the number of set bits of a one-dimensional byte array."""
    whole = bits.size // 8 * 8
    words = bits[:whole].view(np.uint64)
    ones = np.bitwise_count(words).sum(dtype=np.int64)
    return int(ones + np.bitwise_count(bits[whole:]).sum(dtype=np.int64))


MAGIC = b"fedprmsk"
VERSION = 1
HEADER = struct.Struct("<8sHBBIIIQ")


def encode_mask(mask: BitMask, pattern: Pattern = UNSTRUCTURED) -> bytes:
    """Return a mask as header and bits, or numbered groups where those are shorter.

    Parameters
    ----------
    mask : BitMask
        Shape (d_out, d_in).
    pattern : Pattern
        What the mask is known to be.

    Raises
    ------
    WireError
        If the mask does not have the pattern.
    """
    d_out, d_in = mask.shape
    code = coding(pattern)
    payload, n, m = mask.bits, 0, 0
    if code is not None:
        n, m = code.n, code.m
        if d_in % m:
            raise WireError(f"A mask of {d_out}x{d_in} cannot be {pattern}.")
        payload = pack(mask.bits, mask.numel, code)
    checksum = zlib.crc32(payload.data)
    header = HEADER.pack(MAGIC, VERSION, n, m, d_out, d_in, checksum, mask.survivors)
    return b"".join((header, payload.data))


def decode_mask(data: bytes | memoryview, shape: tuple[int, int]) -> BitMask:
    """Read a mask that must have the given shape; the header tells its coding.

    The result is read-only and, where bits came as they are, shares memory with `data`.

    Parameters
    ----------
    data : bytes or memoryview
        Exactly one encoded mask.
    shape : tuple of int
        (d_out, d_in) of the linear that the mask is for.

    Raises
    ------
    WireError
        If length, magic, version, coding, shape, checksum, code words, padding or survivor count
        are not what they must be; the text says what was expected and what was found.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise WireError("A mask must be contiguous bytes.")
    view = view.cast("B")
    if view.nbytes < HEADER.size:
        _check_length(view.nbytes, packed_size(shape[0] * shape[1]), shape)
    magic, version, n, m, d_out, d_in, checksum, survivors = HEADER.unpack_from(view)
    if magic != MAGIC:  # which is not quoted: it comes from the other side
        raise WireError(f"Mask magic: expected {MAGIC!r}, found something else.")
    _check("version", VERSION, version)
    _check("shape", f"{shape[0]}x{shape[1]}", f"{d_out}x{d_in}")
    code = _read_coding(n, m, shape)
    size = packed_size(d_out * d_in) if code is None else code.payload(d_out * d_in)
    _check_length(view.nbytes, size, shape)
    payload = np.frombuffer(view, dtype=np.uint8, offset=HEADER.size)
    _check("CRC-32", f"0x{checksum:08x}", f"0x{zlib.crc32(payload.data):08x}")
    bits: NDArray[np.uint8] = payload if code is None else unpack(payload, d_out * d_in, code)
    bits.flags.writeable = False
    mask = BitMask(bits, shape)
    _check("survivor count", survivors, mask.survivors)
    return mask


def _read_coding(n: int, m: int, shape: tuple[int, int]) -> Coding | None:
    """Return the coding that a header names; only one that `encode_mask` would choose."""
    if n == m == 0:
        return None
    try:
        code = coding(Pattern(n, m))
    except ConfigError:
        code = None
    if code is None or shape[1] % m:
        raise WireError(f"Mask coding: {n}:{m} is none of a {shape[0]}x{shape[1]} mask.")
    return code


def _check_length(found: int, payload: int, shape: tuple[int, int]) -> None:
    expected = HEADER.size + payload
    if found != expected:
        raise WireError(
            f"Mask of {shape[0]}x{shape[1]}: expected {expected} bytes "
            f"({HEADER.size} of header), found {found}."
        )


def _check(field: str, expected: object, found: object) -> None:
    if found != expected:
        raise WireError(f"Mask {field}: expected {expected}, found {found}.")


_MAGIC = b"FPBK"
_HEAD = struct.Struct("<4sHH")  # magic, version, number of linears
_NAME = struct.Struct("<HI")  # bytes of the name, bytes of the mask
_VERSION = 1


def encode_block(masks: Mapping[str, BitMask], pattern: Pattern = UNSTRUCTURED) -> bytes:
    """Return the bytes of a block's masks, in the order given.

    Parameters
    ----------
    masks : Mapping[str, BitMask]
        Name of the linear inside the block -> mask of shape (d_out, d_in).
    pattern : Pattern
        What all masks are known to be; the bytes then are fewer, and tell it themselves.

    Raises
    ------
    WireError
        If a mask does not have the pattern.
    """
    parts = [_HEAD.pack(_MAGIC, _VERSION, len(masks))]
    for name, mask in masks.items():
        label, body = name.encode(), encode_mask(mask, pattern)
        parts += [_NAME.pack(len(label), len(body)), label, body]
    return b"".join(parts)


def decode_block(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, BitMask]:
    """Read a block's masks, which must be those of ``shapes`` in the same order.

    Parameters
    ----------
    data : bytes or memoryview
        What :func:`encode_block` made; may come from anyone.
    shapes : Mapping[str, tuple[int, int]]
        Name of each expected linear -> (d_out, d_in).

    Returns
    -------
    dict[str, BitMask]
        The masks, in the order of ``shapes``.

    Raises
    ------
    WireError
        If anything differs from what the model says: length, names, order, shapes, bits.
    """
    view = memoryview(data)
    _check_head(view, len(shapes))
    offset = _HEAD.size
    masks: dict[str, BitMask] = {}
    for name, shape in shapes.items():
        body, offset = _next_frame(view, offset, name)
        try:
            masks[name] = decode_mask(body, shape)
        except WireError as error:
            raise WireError(f"linear '{name}': {error}") from None
    if offset != len(view):
        raise WireError(f"{len(view) - offset} bytes follow the last mask, expected none.")
    return masks


def _check_head(view: memoryview, linears: int) -> None:
    if len(view) < _HEAD.size:
        raise WireError(f"a block's header has {_HEAD.size} bytes, got {len(view)}.")
    magic, version, count = _HEAD.unpack_from(view)
    if magic != _MAGIC or version != _VERSION:
        # What else it starts with is not quoted: it comes from the other side.
        found = f"version {version}" if magic == _MAGIC else "something else"
        raise WireError(
            f"a block starts with {_MAGIC!r} version {_VERSION}, got {found}. "
            "Run the same release of fedprune everywhere."
        )
    if count != linears:
        raise WireError(f"the block has {linears} linears, got masks for {count}.")


def _next_frame(view: memoryview, offset: int, name: str) -> tuple[memoryview, int]:
    expected = name.encode()
    start = offset + _NAME.size
    if start > len(view):
        raise WireError(f"the bytes end before the mask of '{name}'.")
    label_size, body_size = _NAME.unpack_from(view, offset)
    end = start + label_size + body_size
    if end > len(view):
        raise WireError(f"the mask of '{name}' needs {end} bytes, got {len(view)}.")
    # The name itself is not quoted: it comes from the other side.
    if bytes(view[start : start + label_size]) != expected:
        raise WireError(f"expected the mask of '{name}' here, got another linear's.")
    return view[start + label_size : end], end
