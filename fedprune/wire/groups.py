"""Linears that read the same input, and the number of tokens in it: the head of each statistic."""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.wire.frame import Reader, text_parts

T = TypeVar("T")

_COUNT = struct.Struct("<H")  # groups
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
    return _COUNT.pack(groups)


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
    (count,) = reader.unpack(_COUNT, "the number of inputs")
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
