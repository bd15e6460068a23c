"""What a server decided for one decoder block: global masks and, with scaling, keep counts.

Little endian. Head: magic, version, CRC-32 of all that follows, bytes of the masks; then the masks
as in :mod:`fedprune.wire.block`; then for each linear, in the same order, a total and, if it is
scaled, the counts of its survivors as bit planes, lowest digit first: ``total.bit_length()`` planes
of one bit a survivor.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.errors import WireError
from fedprune.wire.bitmask import BitMask, packed_size
from fedprune.wire.block import decode_block, encode_block

_MAGIC = b"FPUP"
_VERSION = 1
_HEAD = struct.Struct("<4sHII")  # magic, version, CRC-32 of the rest, bytes of the masks
_KEEPS = struct.Struct("<BI")  # scaled or not, total

Counts = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class LinearUpdate:
    """What becomes of one linear.

    Parameters
    ----------
    mask : BitMask
        Global mask, shape (d_out, d_in).
    keeps : NDArray[np.uint8 | np.uint16 | np.uint32] or None
        For each survivor, in row-major order, the weight of the clients that kept it; shape
        (survivors,), none above ``total``. None leaves the survivors as they are.
    total : int
        Weight of all clients that voted, 1 <= total < 2**32.

    Raises
    ------
    WireError
        If the counts are not those of such a mask.
    """

    mask: BitMask
    keeps: Counts | None
    total: int

    def __post_init__(self) -> None:
        """Refuse counts that do not belong to the mask."""
        if not 1 <= self.total < 2**32:
            raise WireError(f"An update's total must be from 1 to 2**32 - 1, got {self.total}.")
        if self.keeps is None:
            return
        if self.keeps.dtype.kind != "u" or self.keeps.shape != (self.mask.survivors,):
            raise WireError(
                f"An update of {self.mask.survivors} survivors needs as many unsigned counts, got "
                f"{self.keeps.dtype} of shape {self.keeps.shape}."
            )
        most = int(self.keeps.max(initial=0))
        if most > self.total:
            raise WireError(f"A survivor cannot be kept by {most} of {self.total}.")

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the weight."""
        return self.mask.shape

    def factors(self) -> NDArray[np.float32] | None:
        """Return what each weight is multiplied by, float32 of the mask's shape; None if nothing.

        The factor of a survivor is (m - v)/m, with v votes of m (FedPrLLM, arXiv 2505.13547); a
        pruned weight's is 0.
        """
        if self.keeps is None:
            return None
        factors = np.zeros(self.mask.shape, dtype=np.float32)
        factors[self.mask.to_bool()] = self.keeps / np.float64(self.total)
        return factors

    def __eq__(self, other: object) -> bool:
        """Whether both do the same to a weight."""
        if not isinstance(other, LinearUpdate):
            return NotImplemented
        if self.keeps is None or other.keeps is None:
            same = self.keeps is other.keeps
        else:
            same = np.array_equal(self.keeps, other.keeps)
        return same and self.total == other.total and self.mask == other.mask

    __hash__ = None  # type: ignore[assignment]  # equality looks at arrays: not hashable


Change = BitMask | LinearUpdate
"""What is done to a linear: a mask alone leaves the survivors as they are."""


def mask_of(change: Change) -> BitMask:
    """Return the mask of a change."""
    return change.mask if isinstance(change, LinearUpdate) else change


def encode_update(updates: Mapping[str, LinearUpdate], pattern: Pattern = UNSTRUCTURED) -> bytes:
    """Return the bytes of a block's update, in the order given.

    Parameters
    ----------
    updates : Mapping[str, LinearUpdate]
        Name of the linear inside the block -> what becomes of it.
    pattern : Pattern
        What all masks are known to be, as in :func:`fedprune.wire.block.encode_block`.
    """
    masks = encode_block({name: update.mask for name, update in updates.items()}, pattern)
    parts = [masks]
    for update in updates.values():
        parts.append(_KEEPS.pack(update.keeps is not None, update.total))
        if update.keeps is not None:
            parts += [
                np.packbits(update.keeps >> digit & 1, bitorder="little").tobytes()
                for digit in range(update.total.bit_length())
            ]
    body = b"".join(parts)
    return _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(body), len(masks)) + body


def decode_update(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, LinearUpdate]:
    """Read a block's update, which must be for the linears of ``shapes`` in the same order.

    Parameters
    ----------
    data : bytes or memoryview
        What :func:`encode_update` made; may come from anyone.
    shapes : Mapping[str, tuple[int, int]]
        Name of each expected linear -> (d_out, d_in).

    Returns
    -------
    dict[str, LinearUpdate]
        The updates, in the order of ``shapes``.

    Raises
    ------
    WireError
        If anything differs from what the model says: length, checksum, names, shapes, counts.
    """
    view = memoryview(data)
    start = _HEAD.size + _check_head(view)
    if start > len(view):
        raise WireError(f"an update's masks end at byte {start}, got {len(view)} bytes.")
    masks = decode_block(view[_HEAD.size : start], shapes)
    updates: dict[str, LinearUpdate] = {}
    for name, mask in masks.items():
        try:
            updates[name], start = _read_linear(view, start, mask)
        except WireError as error:
            raise WireError(f"linear '{name}': {error}") from None
    if start != len(view):
        raise WireError(f"{len(view) - start} bytes follow the last linear, expected none.")
    return updates


def _check_head(view: memoryview) -> int:
    """Return how many bytes the masks take."""
    if len(view) < _HEAD.size:
        raise WireError(f"an update's head has {_HEAD.size} bytes, got {len(view)}.")
    magic, version, checksum, size = _HEAD.unpack_from(view)
    if magic != _MAGIC or version != _VERSION:
        raise WireError(
            f"an update starts with {_MAGIC!r} version {_VERSION}, got {magic!r} version "
            f"{version}. Run the same release of fedprune everywhere."
        )
    found = zlib.crc32(view[_HEAD.size :])
    if found != checksum:
        raise WireError(f"an update's CRC-32 must be 0x{checksum:08x}, got 0x{found:08x}.")
    return int(size)


def _read_linear(view: memoryview, start: int, mask: BitMask) -> tuple[LinearUpdate, int]:
    if start + _KEEPS.size > len(view):
        raise WireError("the bytes end before its total.")
    scaled, total = _KEEPS.unpack_from(view, start)
    start += _KEEPS.size
    if scaled > 1:
        raise WireError(f"it must be scaled or not, 1 or 0, got {scaled}.")
    if not scaled:
        return LinearUpdate(mask, None, total), start
    survivors, plane_size = mask.survivors, packed_size(mask.survivors)
    stop = start + plane_size * total.bit_length()
    if stop > len(view):
        raise WireError(f"its counts end at byte {stop}, got {len(view)} bytes.")
    keeps = np.zeros(survivors, dtype=np.min_scalar_type(total))
    for digit in range(total.bit_length()):
        packed = np.frombuffer(view, np.uint8, plane_size, start + digit * plane_size)
        ones = np.unpackbits(packed, bitorder="little")
        if ones[survivors:].any():
            raise WireError("unused bits of its counts must be zero.")
        keeps |= ones[:survivors].astype(keeps.dtype) << digit
    return LinearUpdate(mask, keeps, total), stop
