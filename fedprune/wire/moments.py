"""Second moments of inputs: a triangle, a sketch, or the diagonal alone.

Their arrays are called ``{input}.{part}`` (:mod:`fedprune.wire.inputs`):

======================  ============================================================================
Body                    Arrays
======================  ============================================================================
``Triangle``, float32   ``triangle``: upper triangle row by row, float32
``Triangle``, float16   ``diagonal``, float32; ``correlations`` above it row by row, float16
``Sketch``              ``diagonal``, float32; ``scales``: the largest magnitude of each vector,
                        float32; ``eigen`` or ``nystrom``: the vectors divided by it, float16,
                        shape (r, d)
``Columns``             ``diagonal``, float32
``Cross``, float32      ``deviations``, float32; ``cross`` row by row, float32, shape (d, d)
``Cross``, float16      ``deviations``, float32; ``cross_correlations``, float16, shape (d, d)
======================  ============================================================================
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.wire.inputs import (
    InputArrays,
    check_columns,
    check_input,
    check_nothing,
    decode_inputs,
    encode_inputs,
)

Precision = Literal["float32", "float16"]

_DIAGONAL, _TRIANGLE, _CORRELATIONS, _SCALES = "diagonal", "triangle", "correlations", "scales"
_CROSS, _CROSS_CORRELATIONS, _DEVIATIONS = "cross", "cross_correlations", "deviations"
_CROSSED = (_CROSS, _CROSS_CORRELATIONS, _DEVIATIONS)
_PARTS = (_DIAGONAL, _TRIANGLE, _CORRELATIONS, _SCALES, "eigen", "nystrom", *_CROSSED)
_ONE = 0x3C00  # 1.0 in float16
_STRIP = 256  # rows mirrored at a time: a strip's columns stay in a core's cache


@dataclass(frozen=True, eq=False)
class Triangle:
    """The upper triangle of ``G = sum over tokens of x x^T``.

    Additive: the triangle of two sets of tokens is the sum of both. It travels in float32, or as
    correlations, ``G_ij / sqrt(G_ii G_jj)``: numbers from -1 to 1, so that float16 serves inputs of
    every scale; the diagonal stays float32.

    Raises WireError if this is no such triangle.
    """

    # G_11, G_12, ..., G_1d, G_22, ..., shape (d * (d + 1) / 2,), finite, none of the diagonal
    # negative
    values: NDArray[np.float32]
    # how it travels; "float16" rounds all but the diagonal, each to within 2**-12 of ``sqrt(G_ii
    # G_jj)``
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

        Raises WireError if a correlation is NaN or not from -1 to 1, or the diagonal is none.
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


def square(triangle: NDArray[Any]) -> NDArray[np.float64]:
    """Return a symmetric matrix of its upper triangle by rows."""
    width = (isqrt(8 * triangle.size + 1) - 1) // 2
    matrix = np.zeros((width, width))
    matrix[np.triu_indices(width)] = triangle
    return np.where(np.tri(width, k=-1, dtype=bool), matrix.T, matrix)


def _rows(width: int) -> Iterator[tuple[int, int]]:
    """Yield each row and where its diagonal entry is among the values."""
    start = 0
    for row in range(width):
        yield row, start
        start += width - row


@dataclass(frozen=True, eq=False)
class Columns:
    """The diagonal of the second moments: sums of squares."""

    diagonal: NDArray[np.float32]  # sum over tokens of x_j**2, shape (d,), finite and not negative

    def __post_init__(self) -> None:
        """Refuse what cannot be sums of squares."""
        check_columns(self.diagonal)

    @property
    def width(self) -> int:
        """The d of the input."""
        return self.diagonal.size


@dataclass(frozen=True, eq=False)
class Sketch:
    """A few vectors that stand for the second moments, and their diagonal.

    Raises WireError if the parts do not fit each other.
    """

    # shape (d, r), 0 <= r <= d, finite. On the wire each vector is float16 times its largest
    # magnitude.
    vectors: NDArray[np.float32]
    diagonal: NDArray[np.float32]  # sum over tokens of x_j**2, shape (d,), finite and not negative
    # eigenvectors times the roots of their eigenvalues, or moments times a public matrix
    kind: Literal["eigen", "nystrom"]

    def __post_init__(self) -> None:
        """Refuse what is no sketch."""
        check_columns(self.diagonal)
        if (
            self.vectors.dtype != np.float32
            or self.vectors.ndim != 2
            or len(self.vectors) != self.width
            or self.rank > self.width
        ):
            raise WireError(
                f"A sketch of {self.width} inputs is as many rows of float32 numbers and not more "
                f"columns, got {self.vectors.dtype} of shape {self.vectors.shape}."
            )
        if not np.isfinite(self.vectors).all():
            raise WireError("The vectors of a sketch must be finite.")

    @property
    def width(self) -> int:
        """The d of the input."""
        return self.diagonal.size

    @property
    def rank(self) -> int:
        """Number of vectors."""
        return int(self.vectors.shape[1])


@dataclass(frozen=True, eq=False)
class Cross:
    """How inputs behind pruned blocks, x~, differ from those of the dense model, x.

    Additive like second moments. It travels in float32, or as ``E_ij / sqrt(S_i G_jj)`` in float16
    beside the squares: numbers from -1 to 1, by the inequality of Cauchy and Schwarz.

    Raises WireError if the parts do not fit each other.
    """

    values: NDArray[np.float32]  # E = sum over tokens of (x - x~) x~^T, shape (d, d), finite
    # S = sum over tokens of (x - x~)_j**2, shape (d,), finite and not negative
    squares: NDArray[np.float32]
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot be a cross moment."""
        check_columns(self.squares, "Squares of deviations")
        shape = (self.squares.size, self.squares.size)
        if self.values.dtype != np.float32 or self.values.shape != shape:
            raise WireError(
                f"A cross moment is float32 of shape {shape}, got {self.values.dtype} of shape "
                f"{self.values.shape}."
            )
        if not np.isfinite(self.values).all():
            raise WireError("A cross moment must be finite.")

    def correlations(self, diagonal: NDArray[np.float32]) -> NDArray[np.float16]:
        """Return E_ij / sqrt(S_i G_jj), zero where that is zero, shape (d, d)."""
        rows, columns = _inverse_roots(self.squares), _inverse_roots(diagonal)
        # One factor after the other: their product alone may be beyond float32.
        scaled = self.values * rows[:, None] * columns
        found: NDArray[np.float16] = scaled.clip(-1, 1).astype(np.float16)
        return found

    @classmethod
    def from_correlations(
        cls,
        diagonal: NDArray[np.float32],
        squares: NDArray[np.float32],
        correlations: NDArray[np.float16],
    ) -> Self:
        """Undo :meth:`correlations`; WireError if one is NaN or not from -1 to 1."""
        if (correlations.view(np.uint16) & 0x7FFF).max(initial=0) > _ONE:
            raise WireError("Correlations must be from -1 to 1.")
        check_columns(squares, "Squares of deviations")
        values = correlations.astype(np.float32)
        values *= np.sqrt(squares)[:, None]
        values *= np.sqrt(diagonal)
        return cls(values, squares, "float16")


def _inverse_roots(squares: NDArray[np.float32]) -> NDArray[np.float32]:
    roots = np.sqrt(squares)
    return np.divide(1, roots, out=np.zeros_like(roots), where=roots > 0)


@dataclass(frozen=True, eq=False)
class InputMoments:
    """What one client says of the second moments of an input.

    Raises WireError if there is no linear, or one twice, or moments of no tokens are not zero.
    """

    linears: tuple[str, ...]  # the linears that it enters, by their names inside the block
    tokens: int  # number of tokens summed; 0 where none came, of an expert for instance
    body: Triangle | Sketch | Columns  # all of the moments, or some
    # beside a triangle: how the inputs differ from the dense model's, where that is told
    cross: Cross | None = None

    def __post_init__(self) -> None:
        """Refuse what is no input."""
        check_input(self.linears, self.tokens)
        body = self.body
        if self.cross is not None:
            check_nothing(self.tokens, self.cross.values)
            check_nothing(self.tokens, self.cross.squares)
            if not isinstance(body, Triangle) or self.cross.squares.size != body.width:
                raise WireError("a cross moment goes with a triangle of the same width.")
        if isinstance(body, Sketch):
            check_nothing(self.tokens, body.vectors)
        check_nothing(self.tokens, body.values if isinstance(body, Triangle) else body.diagonal)


def encode_moments(groups: Sequence[InputMoments]) -> bytes:
    """Return the bytes of a block's moments.

    Raises WireError if a triangle that travels in float16 cannot be one of second moments.
    """
    return encode_inputs(
        (group.linears, group.tokens, {**_parts(group.body), **_cross_parts(group)})
        for group in groups
    )


def decode_moments(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> list[InputMoments]:
    """Read a block's moments, which must be for exactly the linears of ``shapes``.

    `data`: may come from anyone; WireError if anything is damaged, missing, there twice, not finite
    or more than there can be.
    """

    def read(one: InputArrays) -> InputMoments:
        body = _body(one)
        return InputMoments(one.linears, one.tokens(), body, _cross(one, body))

    return decode_inputs(data, shapes, _PARTS, read)


def _parts(body: Triangle | Sketch | Columns) -> dict[str, NDArray[np.generic]]:
    if isinstance(body, Columns):
        return {_DIAGONAL: body.diagonal}
    if isinstance(body, Sketch):
        scales, vectors = _halved(body.vectors)
        return {_DIAGONAL: body.diagonal, _SCALES: scales, body.kind: vectors}
    if body.precision == "float16":
        return {_DIAGONAL: body.diagonal, _CORRELATIONS: body.correlations()}
    return {_TRIANGLE: body.values}


def _cross_parts(group: InputMoments) -> dict[str, NDArray[np.generic]]:
    cross, body = group.cross, group.body
    if cross is None or not isinstance(body, Triangle):
        return {}
    found: dict[str, NDArray[np.generic]] = {_DEVIATIONS: cross.squares}
    if cross.precision == "float16":
        return found | {_CROSS_CORRELATIONS: cross.correlations(body.diagonal)}
    return found | {_CROSS: cross.values}


def _cross(one: InputArrays, body: Triangle | Sketch | Columns) -> Cross | None:
    if not one.statistics.intersection(_CROSSED):
        return None
    if not isinstance(body, Triangle):
        raise WireError("a cross moment goes with a triangle.")
    squares = one.take(_DEVIATIONS, "float32", one.width).astype(np.float32)
    if _CROSS_CORRELATIONS in one.statistics:
        halves = one.take(_CROSS_CORRELATIONS, "float16", one.width, one.width)
        return Cross.from_correlations(body.diagonal, squares, halves.astype(np.float16))
    values = one.take(_CROSS, "float32", one.width, one.width).astype(np.float32)
    return Cross(values, squares)


def _body(one: InputArrays) -> Triangle | Sketch | Columns:
    width, there = one.width, one.statistics
    if _TRIANGLE in there:
        return Triangle(one.take(_TRIANGLE, "float32", triangle_size(width)).astype(np.float32))
    diagonal = one.take(_DIAGONAL, "float32", width).astype(np.float32)
    if _CORRELATIONS in there:
        halves = one.take(_CORRELATIONS, "float16", triangle_size(width - 1))
        return Triangle.from_correlations(diagonal, halves.astype(np.float16))
    kind: Literal["eigen", "nystrom"] = "eigen" if "eigen" in there else "nystrom"
    return _sketch(one, diagonal, kind) if kind in there else Columns(diagonal)


def _sketch(
    one: InputArrays, diagonal: NDArray[np.float32], kind: Literal["eigen", "nystrom"]
) -> Sketch:
    rank = (*one.announced(kind).shape, 0)[0]
    if rank > one.width:
        raise WireError(f"a sketch of {one.width} inputs has as many vectors at most, got {rank}.")
    vectors = one.take(kind, "float16", rank, one.width).astype(np.float32)
    scales = one.take(_SCALES, "float32", rank).astype(np.float32)
    check_columns(scales, "Scales")
    if not np.abs(vectors).max(initial=0) <= 1:
        raise WireError("a sketch's vectors must be from -1 to 1 before they are scaled.")
    return Sketch(np.ascontiguousarray((vectors * scales[:, None]).T), diagonal, kind)


def _halved(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Return the largest magnitude of each vector, (r,), and the vectors divided by it, (r, d)."""
    scales = np.abs(vectors).max(axis=0, initial=0)
    divided = np.divide(vectors, scales, out=np.zeros_like(vectors), where=scales > 0)
    return scales, divided.T.astype(np.float16)
