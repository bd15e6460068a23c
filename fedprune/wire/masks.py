"""The mask's wire format: a fixed header that is checked field by field, then the bits.

Little endian, 32 bytes of header: magic (8 bytes), version, d_out, d_in, CRC-32 of the bits (4
bytes each), survivors (8 bytes). The receiver knows the shape from its own model, so a header
only confirms; a length that differs by one byte is refused.
"""

import struct
import zlib

import numpy as np

from fedprune.errors import WireError
from fedprune.wire.bitmask import BitMask, packed_size

MAGIC = b"fedprmsk"
VERSION = 1
HEADER = struct.Struct("<8sIIIIQ")


def encode_mask(mask: BitMask) -> bytes:
    """Return a mask as header and bits."""
    d_out, d_in = mask.shape
    header = HEADER.pack(MAGIC, VERSION, d_out, d_in, zlib.crc32(mask.bits.data), mask.survivors)
    return b"".join((header, mask.bits.data))


def decode_mask(data: bytes | memoryview, shape: tuple[int, int]) -> BitMask:
    """Read a mask that must have the given shape.

    The result shares memory with `data` and is read-only.

    Parameters
    ----------
    data : bytes or memoryview
        Exactly one encoded mask.
    shape : tuple of int
        (d_out, d_in) of the linear that the mask is for.

    Raises
    ------
    WireError
        If length, magic, version, shape, checksum, padding or survivor count are not what they
        must be; the text says what was expected and what was found.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise WireError("A mask must be contiguous bytes.")
    view = view.cast("B")
    _check_length(view.nbytes, shape)
    magic, version, d_out, d_in, checksum, survivors = HEADER.unpack_from(view)
    _check("magic", MAGIC, magic)
    _check("version", VERSION, version)
    _check("shape", f"{shape[0]}x{shape[1]}", f"{d_out}x{d_in}")
    bits = np.frombuffer(view, dtype=np.uint8, offset=HEADER.size)
    bits.flags.writeable = False
    _check("CRC-32", f"0x{checksum:08x}", f"0x{zlib.crc32(bits.data):08x}")
    mask = BitMask(bits, shape)
    _check("survivor count", survivors, mask.survivors)
    return mask


def _check_length(found: int, shape: tuple[int, int]) -> None:
    expected = HEADER.size + packed_size(shape[0] * shape[1])
    if found != expected:
        raise WireError(
            f"Mask of {shape[0]}x{shape[1]}: expected {expected} bytes "
            f"({HEADER.size} of header), found {found}."
        )


def _check(field: str, expected: object, found: object) -> None:
    if found != expected:
        raise WireError(f"Mask {field}: expected {expected}, found {found}.")
