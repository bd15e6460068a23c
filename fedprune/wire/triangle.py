"""Half of a symmetric matrix of second moments, in float32 or as correlations in float16.

A correlation, ``G_ij / sqrt(G_ii G_jj)``, is a number from -1 to 1, so that float16 serves inputs
of every scale; the diagonal stays float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.wire.groups import check_columns

Precision = Literal["float32", "float16"]

_ONE = 0x3C00  # 1.0 in float16
_STRIP = 256  # rows mirrored at a time: a strip's columns stay in a core's cache


@dataclass(frozen=True, eq=False)
class Triangle:
    """The upper triangle of ``G = sum over tokens of x x^T``.

    Additive: the triangle of two sets of tokens is the sum of both.

    Parameters
    ----------
    values : NDArray[np.float32]
        G_11, G_12, ..., G_1d, G_22, ..., shape (d * (d + 1) / 2,), finite, none of the diagonal
        negative.
    precision : {"float32", "float16"}
        How it travels; "float16" rounds all but the diagonal, each to within 2**-12 of
        ``sqrt(G_ii G_jj)``.

    Raises
    ------
    WireError
        If this is no such triangle.
    """

    values: NDArray[np.float32]
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot be second moments."""
        size = triangle_size(max(self.width, 1))
        if self.values.dtype != np.float32 or self.values.shape != (size,):
            raise WireError(
                f"A triangle is a float32 vector of d * (d + 1) / 2 numbers, got "
                f"{self.values.dtype} of shape {self.values.shape}."
            )
        lowest, highest = self.values.min(), self.values.max()
        if not (lowest > -np.inf and highest < np.inf):
            raise WireError("Second moments must be finite.")
        check_columns(self.diagonal)

    @classmethod
    def from_matrix(cls, matrix: NDArray[np.float32], precision: Precision = "float32") -> Self:
        """Return the triangle of a symmetric float32 matrix, shape (d, d)."""
        rows = [matrix[row, row:] for row in range(len(matrix))]
        return cls(np.concatenate(rows), precision)

    @property
    def width(self) -> int:
        """The d of a matrix (d, d)."""
        return (isqrt(8 * self.values.size + 1) - 1) // 2

    @property
    def diagonal(self) -> NDArray[np.float32]:
        """Sum over tokens of x_j**2, float32, shape (d,)."""
        rows = np.arange(self.width)
        diagonal: NDArray[np.float32] = self.values[rows * (2 * self.width - rows + 1) // 2]
        return diagonal

    def matrix(self) -> NDArray[np.float32]:
        """Return the whole symmetric matrix, float32, shape (d, d)."""
        width = self.width
        whole = np.empty((width, width), dtype=np.float32)
        for row, start in _rows(width):
            whole[row, row:] = self.values[start : start + width - row]
        for start in range(0, width, _STRIP):
            strip = whole[start : start + _STRIP]
            stop = start + len(strip)
            below = np.tril_indices(len(strip), -1)
            strip[:, start:stop][below] = strip[:, start:stop].T[below]
            whole[stop:, start:stop] = strip[:, stop:].T
        return whole

    def correlations(self) -> NDArray[np.float16]:
        """Return what is above the diagonal, divided by the roots of both diagonal entries.

        Zero where one of them is. Row by row, shape (d * (d - 1) / 2,).
        """
        roots = np.sqrt(self.diagonal)
        scales = np.divide(1, roots, out=np.zeros_like(roots), where=roots > 0)
        found = np.empty(self.values.size - self.width, dtype=np.float16)
        for row, start in _rows(self.width):
            above = self.values[start + 1 : start + self.width - row]
            # One factor after the other: their product alone may be beyond float32.
            scaled = above * scales[row] * scales[row + 1 :]
            # Rounding alone can take one beyond 1, far beyond where the diagonal is subnormal.
            found[start - row : start - row + scaled.size] = scaled.clip(-1, 1)
        return found

    @classmethod
    def from_correlations(
        cls, diagonal: NDArray[np.float32], correlations: NDArray[np.float16]
    ) -> Self:
        """Return the triangle with a diagonal and correlations (see :meth:`correlations`).

        Raises
        ------
        WireError
            If a correlation is NaN or not from -1 to 1, or the diagonal is none.
        """
        # As integers, magnitudes sort as they do, NaN above all; and much faster.
        magnitudes = correlations.view(np.uint16) & 0x7FFF
        if magnitudes.max(initial=0) > _ONE:
            raise WireError("Correlations must be from -1 to 1.")
        check_columns(diagonal)
        roots, width = np.sqrt(diagonal), diagonal.size
        values = np.empty(triangle_size(width), dtype=np.float32)
        for row, start in _rows(width):
            above = values[start : start + width - row]
            above[0] = diagonal[row]
            above[1:] = correlations[start - row : start - row + width - row - 1]
            above[1:] *= roots[row]
            above[1:] *= roots[row + 1 :]
        return cls(values, "float16")


def triangle_size(width: int) -> int:
    """Return the number of entries on and above the diagonal of a matrix (width, width)."""
    return width * (width + 1) // 2


def _rows(width: int) -> Iterator[tuple[int, int]]:
    """Yield each row and where its diagonal entry is among the values."""
    start = 0
    for row in range(width):
        yield row, start
        start += width - row
