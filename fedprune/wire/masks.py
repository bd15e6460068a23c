"""The mask's wire format: a fixed header that is checked field by field, then the bits.

Little endian, 32 bytes of header: magic (8 bytes), version (2), N and M of the coding (1 each),
d_out, d_in, CRC-32 of what follows (4 each), survivors (8). With N = M = 0 the bits follow as they
are, else groups numbered as in `fedprune.wire.nm`. The receiver knows the shape from its own model,
so a header only confirms; a length that differs by one byte is refused.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.errors import ConfigError, WireError
from fedprune.wire.bitmask import BitMask, packed_size
from fedprune.wire.nm import Coding, coding, pack, unpack

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
