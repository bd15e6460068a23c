"""Statistics of the inputs of a block's linears: arrays that are called ``{input}.{statistic}``.

Linears that read the same input, such as q, k and v, share its statistics; the input is called by
their names with commas between them. A statistic can be of any kind: who reads it says its type and
shape from the number of columns.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError
from fedprune.wire.arrays import Arrays, ArraySpec, encode_arrays

T = TypeVar("T")

TOKENS = "tokens"
"""The statistic that every input has here: the number of tokens summed."""

_MOST_TOKENS = (1 << 63) - 1


def input_name(linears: Sequence[str]) -> str:
    """Return what an input is called that enters these linears."""
    return ",".join(linears)


def check_input(linears: Sequence[str], tokens: int) -> None:
    """Raise ``WireError`` unless there are linears, each once, and a number of tokens.

    It may be zero: of an expert that no token was routed to.
    """
    if not linears or len(set(linears)) < len(linears):
        raise WireError(f"An input enters one linear or more, each once, got {tuple(linears)}.")
    if not 0 <= tokens <= _MOST_TOKENS:
        raise WireError(f"An input has from 0 to 2**63 - 1 tokens, got {tokens}.")


def check_nothing(tokens: int, sums: NDArray[Any]) -> None:
    """Raise ``WireError`` if sums are of no tokens and yet not zero."""
    if not tokens and sums.any():
        raise WireError("Sums of no tokens are zero.")


def check_columns(sums: NDArray[np.float32], what: str = "Sums of squares") -> None:
    """Raise ``WireError`` unless this is a float32 vector, finite and nowhere negative."""
    if sums.dtype != np.float32 or sums.ndim != 1:
        raise WireError(
            f"{what} must be a vector of float32 numbers, got {sums.dtype} of shape {sums.shape}."
        )
    # A negative zero would become a negative score. NaN is not below infinity, so it fails.
    if np.signbit(sums).any() or not sums.max(initial=0) < np.inf:
        raise WireError(f"{what} must be finite and not negative.")


@dataclass(frozen=True)
class InputArrays:
    """What came of one input, still to be taken."""

    linears: tuple[str, ...]  # the linears that it enters, by their names inside the block
    width: int  # its number of columns, d_in
    statistics: frozenset[str]
    _arrays: Arrays

    def announced(self, statistic: str) -> ArraySpec:
        """Return the type and shape in which a statistic came; nobody checked them."""
        return self._arrays.announced(f"{input_name(self.linears)}.{statistic}")

    def take(self, statistic: str, dtype: str, *shape: int) -> NDArray[Any]:
        """Return a statistic, which must be of that type and shape; read-only, sharing memory."""
        name = f"{input_name(self.linears)}.{statistic}"
        return self._arrays.take(name, ArraySpec(dtype, shape))

    def tokens(self) -> int:
        """Return the number of tokens summed."""
        return int(self.take(TOKENS, "int64"))


def encode_inputs(
    inputs: Iterable[tuple[Sequence[str], int, Mapping[str, NDArray[Any] | Tensor]]],
) -> bytes:
    """Return the bytes of a block's statistics; the order of inputs does not show.

    `inputs`: for each the linears that it enters, the number of tokens, statistics by name.
    """
    arrays: dict[str, NDArray[Any] | Tensor] = {}
    for linears, tokens, statistics in inputs:
        name = input_name(linears)
        arrays[f"{name}.{TOKENS}"] = np.array(tokens, dtype=np.int64)
        arrays |= {f"{name}.{statistic}": array for statistic, array in statistics.items()}
    return encode_arrays(arrays)


def decode_inputs(
    data: bytes | memoryview,
    shapes: Mapping[str, tuple[int, int]],
    statistics: Collection[str],
    read: Callable[[InputArrays], T],
) -> list[T]:
    """Read a block's statistics, which must be for exactly the linears of ``shapes``.

    `data`: what :func:`encode_inputs` made; may come from anyone. `shapes`: name of each expected
    linear -> (d_out, d_in). `statistics`: the statistics that an input may have, beside its tokens.
    `read`: makes one input of its arrays, and takes all of them. Returns what ``read`` made, in the
    order of ``shapes``. Raises WireError if anything is damaged, missing, there twice or not
    expected, or ``read`` refuses it.
    """
    known = (TOKENS, *statistics)
    arrays = Arrays(data, (f"{linear}.{one}" for linear in shapes for one in known))
    found = []
    for one in _inputs(arrays, shapes, known):
        try:
            found.append(read(one))
        except WireError as error:
            raise WireError(f"the input of '{one.linears[0]}': {error}") from None
    arrays.finish()
    return found


def _inputs(
    arrays: Arrays, shapes: Mapping[str, tuple[int, int]], statistics: Collection[str]
) -> list[InputArrays]:
    """Return the inputs of which there is anything; together they enter every linear once."""
    there: dict[str, set[str]] = {}
    for name in sorted(arrays.names):
        statistic = next((one for one in statistics if name.endswith(f".{one}")), None)
        if statistic is None:
            raise WireError(f"there are statistics besides {', '.join(statistics)}.")
        there.setdefault(name.removesuffix(f".{statistic}"), set()).add(statistic)
    places = {linear: place for place, linear in enumerate(shapes)}
    left = set(shapes)
    found = []
    for label, names in there.items():
        linears = tuple(label.split(","))
        # What is not known is not quoted: it comes from the other side.
        if not left.issuperset(linears) or len(set(linears)) < len(linears):
            raise WireError("there is a linear that the block has not, or one is there twice.")
        left.difference_update(linears)
        widths = {shapes[linear][1] for linear in linears}
        if len(widths) > 1:
            raise WireError(f"{', '.join(linears)} cannot share an input: their d_in differ.")
        found.append(InputArrays(linears, widths.pop(), frozenset(names), arrays))
    if left:
        missing = [linear for linear in shapes if linear in left]
        raise WireError(f"nothing came for {', '.join(missing)}.")
    return sorted(found, key=lambda one: places[one.linears[0]])
