"""One client's exact sums of squared inputs.

Sums travel as floating-point numbers of any length: how many bits a sum has, then the
bits themselves, highest first, as planes of one byte a column. Planes of zeros at the end are left
out; the others are Huffman-coded where that is shorter, which it is for the lengths and the last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedprune.errors import WireError
from fedprune.wire.exact import BITS, ExactSums, shift_down
from fedprune.wire.frame import Kind, Reader, seal
from fedprune.wire.groups import check_group, count_part, head_parts, read_groups
from fedprune.wire.planes import plane_parts, read_planes

_KIND = Kind("a message of sums", b"FPSU", 1)
_WIDTH = BITS // 8  # bytes of a count


@dataclass(frozen=True)
class InputSums:
    """One client's sums of squares of an input.

    Parameters
    ----------
    linears : tuple of str
        The linears that it enters, by their names inside the block.
    sums : ExactSums
        Sum over tokens of x_j**2, d_in columns.
    tokens : int
        Number of tokens summed.

    Raises
    ------
    WireError
        If there is no linear, one twice, or no token.
    """

    linears: tuple[str, ...]
    sums: ExactSums
    tokens: int

    def __post_init__(self) -> None:
        """Refuse what is no input."""
        check_group(self.linears, self.tokens)


def encode_sums(groups: Sequence[InputSums]) -> bytes:
    """Return the bytes of a block's sums, about 4.5 a column; nothing is rounded.

    Parameters
    ----------
    groups : Sequence[InputSums]
        The distinct inputs of the block's linears.
    """
    parts: list[bytes | memoryview] = [count_part(len(groups))]
    for group in groups:
        high, low, bits = group.sums.scaled_words()
        words = np.stack((high, low), axis=1).astype(">u8").view(np.uint8)
        parts += head_parts(group.linears, group.tokens)
        parts += plane_parts([bits.astype(np.uint8), *words.T])
    return seal(_KIND, parts)


def decode_sums(data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]) -> list[InputSums]:
    """Read a block's sums, which must be for exactly the linears of ``shapes``.

    Parameters
    ----------
    data : bytes or memoryview
        What :func:`encode_sums` made; may come from anyone.
    shapes : Mapping[str, tuple[int, int]]
        Name of each expected linear -> (d_out, d_in).

    Raises
    ------
    WireError
        If anything is damaged, missing, there twice or more than there can be.
    """
    reader = Reader(data, _KIND)

    def read(linears: tuple[str, ...], tokens: int, d_in: int) -> InputSums:
        return InputSums(linears, _read_sums(reader, d_in), tokens)

    return read_groups(reader, shapes, read)


def _read_sums(reader: Reader, d_in: int) -> ExactSums:
    planes = read_planes(reader, d_in, 1 + _WIDTH)
    words = np.ascontiguousarray(planes[1:].T).view(">u8").astype(np.uint64)
    bits = planes[0].astype(np.int64)
    if bits.max(initial=0) > BITS:
        raise WireError(f"a sum has {BITS} bits at most, got {bits.max()}.")
    by = np.minimum(BITS - bits, BITS - 1)
    sums = ExactSums.from_words(*shift_down(words[:, 0], words[:, 1], by))
    # Each sum has one form: the first bit is set, and none after the last.
    for sent, expected in zip((*words.T, bits), sums.scaled_words(), strict=True):
        if not np.array_equal(sent, expected):
            raise WireError("a sum does not have as many bits as it says.")
    return sums
