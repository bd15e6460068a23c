"""What equally voted weights are sorted by: their magnitude, or random numbers."""

import numpy as np
from numpy.typing import NDArray

from fedprune.methods.group_loops import copy_columns

Indices = NDArray[np.int32 | np.int64]
Keys = NDArray[np.uint32]
Codes = NDArray[np.int32]


class RandomKeys:
    """A stream of random numbers that depends on the seed alone.

    It takes the bit generator's raw output, which NumPy keeps the same over releases and machines.

    Parameters
    ----------
    seed : int
        Non-negative.
    """

    def __init__(self, seed: int) -> None:
        self._stream = np.random.PCG64(seed)

    def draw(self, count: int) -> Keys:
        """Return the next `count` numbers."""
        return (self._stream.random_raw(count) >> np.uint64(32)).astype(np.uint32)


class MatrixKeys:
    """Sorting keys of the members of comparison groups: the bit patterns of |W|, which sort as it.

    Parameters
    ----------
    magnitude : NDArray[np.float32]
        |W|, flat, row-major, without NaN.
    shape : tuple of int
        (d_out, d_in).
    group : str
        'layer', 'row' or 'column'.
    """

    def __init__(self, magnitude: NDArray[np.float32], shape: tuple[int, int], group: str) -> None:
        self._codes: Codes = magnitude.view(np.int32).reshape(
            (1, -1) if group == "layer" else shape
        )
        self._turned = group == "column"

    @property
    def layer(self) -> Codes | None:
        """The keys of all weights, if they compete with each other."""
        return self._codes[0] if len(self._codes) == 1 and not self._turned else None

    def at(self, groups: Indices, members: Indices) -> Keys:
        """Return the keys of members of groups."""
        if self._turned:
            groups, members = members, groups
        keys: Codes = (
            self._codes[groups, members] if len(self._codes) > 1 else self._codes[0, members]
        )
        return keys.view(np.uint32)

    def lines(self, groups: Indices) -> tuple[Codes, NDArray[np.int64]]:
        """Return lines of keys, and which of them are those of each group; groups ascend."""
        if not self._turned:
            return self._codes, groups.astype(np.int64)
        first = int(groups[0])
        # Some more than the columns have: lines a power of two apart would share a cache's places.
        lines = np.zeros((int(groups[-1]) + 1 - first, len(self._codes) + 16), dtype=np.int32)
        copy_columns(self._codes, first, lines)
        return lines, (groups - first).astype(np.int64)
