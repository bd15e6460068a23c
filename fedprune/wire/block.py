"""All masks of one decoder block in one byte string.

One array a block keeps the number of transported objects small (each costs a request in a
deployment) while no message needs more than the blocks it was asked for.
"""

import struct
from collections.abc import Mapping

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.errors import WireError
from fedprune.wire.bitmask import BitMask
from fedprune.wire.masks import decode_mask, encode_mask

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
