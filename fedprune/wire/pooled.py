"""All clients' sums of squared inputs, from which nodes make the global masks themselves.

Four bytes a column instead of one bit a weight. Each mask's CRC-32 comes along, so that a node
whose device rounds otherwise notices.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError
from fedprune.wire.frame import Kind, Reader, seal
from fedprune.wire.groups import (
    check_columns,
    check_group,
    count_part,
    head_parts,
    read_groups,
)

_KIND = Kind("a message of pooled sums", b"FPPS", 1)
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class PooledSums:
    """All clients' sums of squares of an input, from which a node makes the global masks itself.

    Parameters
    ----------
    linears : tuple of str
        The linears that it enters, by their names inside the block.
    sums : NDArray[np.float32]
        Sum over clients and tokens of x_j**2, shape (d_in,), finite and not negative.
    tokens : int
        Number of tokens summed.
    checksums : tuple of int
        For each linear the CRC-32 of its global mask's packed bits.

    Raises
    ------
    WireError
        If the parts do not fit each other.
    """

    linears: tuple[str, ...]
    sums: NDArray[np.float32]
    tokens: int
    checksums: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be pooled sums."""
        check_group(self.linears, self.tokens)
        check_columns(self.sums)
        if len(self.checksums) != len(self.linears):
            raise WireError(
                f"{len(self.linears)} linears need as many checksums, got {len(self.checksums)}."
            )

    def tensor(self) -> Tensor:
        """Return the sums as a tensor on the CPU."""
        return torch.from_numpy(self.sums)


def is_pooled(data: bytes | memoryview) -> bool:
    """Whether a message says that it has pooled sums; :func:`decode_pooled` checks it."""
    return bytes(data[: len(_KIND.magic)]) == _KIND.magic


def encode_pooled(groups: Sequence[PooledSums]) -> bytes:
    """Return the bytes of a block's pooled sums, 4 a column.

    Parameters
    ----------
    groups : Sequence[PooledSums]
        The distinct inputs of the block's linears.
    """
    parts: list[bytes | memoryview] = [count_part(len(groups))]
    for group in groups:
        parts += head_parts(group.linears, group.tokens)
        parts += [_CHECKSUM.pack(checksum) for checksum in group.checksums]
        parts.append(group.sums.astype("<f4", copy=False).tobytes())
    return seal(_KIND, parts)


def decode_pooled(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> list[PooledSums]:
    """Read a block's pooled sums, which must be for exactly the linears of ``shapes``.

    Parameters
    ----------
    data : bytes or memoryview
        What :func:`encode_pooled` made; may come from anyone.
    shapes : Mapping[str, tuple[int, int]]
        Name of each expected linear -> (d_out, d_in).

    Raises
    ------
    WireError
        If anything is damaged, missing, there twice or more than there can be.
    """
    reader = Reader(data, _KIND)

    def read(linears: tuple[str, ...], tokens: int, d_in: int) -> PooledSums:
        checksums = [reader.unpack(_CHECKSUM, "a checksum")[0] for _ in linears]
        sums = reader.array("<f4", d_in, "the sums").astype(np.float32)
        return PooledSums(linears, sums, tokens, tuple(checksums))

    return read_groups(reader, shapes, read)
