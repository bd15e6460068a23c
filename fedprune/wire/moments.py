"""Second moments of inputs on the wire: a triangle, a sketch, or the diagonal alone.

After the head of :mod:`fedprune.wire.frame` come the groups of :mod:`fedprune.wire.groups`. What
follows each group's head: its form, its rank (0 where there is none), then arrays, little endian.

====  ======================  ====================================================================
Form  Body                    Arrays
====  ======================  ====================================================================
0     ``Triangle``, float32   upper triangle row by row, float32
1     ``Triangle``, float16   diagonal, float32; correlations above it row by row, float16
2, 3  ``Sketch``, eigen and   diagonal, float32; the largest magnitude of each vector, float32;
      nystrom                 the vectors one after another, divided by it, float16
4     ``Columns``             diagonal, float32
====  ======================  ====================================================================
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.wire.frame import Kind, Reader, seal
from fedprune.wire.groups import check_columns, check_group, count_part, head_parts, read_groups
from fedprune.wire.triangle import Triangle, triangle_size

_KIND = Kind("a message of moments", b"FPMO", 1)
_FORM = struct.Struct("<BI")  # form, rank
_FLOAT32, _FLOAT16, _EIGEN, _NYSTROM, _COLUMNS = range(5)


@dataclass(frozen=True, eq=False)
class Columns:
    """The diagonal of the second moments: sums of squares.

    Parameters
    ----------
    sums : NDArray[np.float32]
        Sum over tokens of x_j**2, shape (d,), finite and not negative.
    """

    sums: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Refuse what cannot be sums of squares."""
        check_columns(self.sums)

    @property
    def width(self) -> int:
        """The d of the input."""
        return self.sums.size


@dataclass(frozen=True, eq=False)
class Sketch:
    """A few vectors that stand for the second moments, and their diagonal.

    Parameters
    ----------
    vectors : NDArray[np.float32]
        Shape (d, r), 0 <= r <= d, finite. On the wire each vector is float16 times its largest
        magnitude.
    diagonal : NDArray[np.float32]
        Sum over tokens of x_j**2, shape (d,), finite and not negative.
    kind : {"eigen", "nystrom"}
        Eigenvectors times the roots of their eigenvalues, or moments times a public matrix.

    Raises
    ------
    WireError
        If the parts do not fit each other.
    """

    vectors: NDArray[np.float32]
    diagonal: NDArray[np.float32]
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
class InputMoments:
    """What one client says of the second moments of an input.

    Parameters
    ----------
    linears : tuple of str
        The linears that it enters, by their names inside the block.
    tokens : int
        Number of tokens summed.
    body : Triangle or Sketch or Columns
        All of the moments, or some.

    Raises
    ------
    WireError
        If there is no linear, one twice, or no token.
    """

    linears: tuple[str, ...]
    tokens: int
    body: Triangle | Sketch | Columns

    def __post_init__(self) -> None:
        """Refuse what is no input."""
        check_group(self.linears, self.tokens)


def encode_moments(groups: Sequence[InputMoments]) -> bytes:
    """Return the bytes of a block's moments.

    Parameters
    ----------
    groups : Sequence[InputMoments]
        The distinct inputs of the block's linears.

    Raises
    ------
    WireError
        If a triangle that travels in float16 cannot be one of second moments.
    """
    parts: list[bytes | memoryview] = [count_part(len(groups))]
    for group in groups:
        parts += head_parts(group.linears, group.tokens)
        parts += _body_parts(group.body)
    return seal(_KIND, parts)


def decode_moments(
    data: bytes | memoryview, shapes: Mapping[str, tuple[int, int]]
) -> list[InputMoments]:
    """Read a block's moments, which must be for exactly the linears of ``shapes``.

    Parameters
    ----------
    data : bytes or memoryview
        What :func:`encode_moments` made; may come from anyone.
    shapes : Mapping[str, tuple[int, int]]
        Name of each expected linear -> (d_out, d_in).

    Raises
    ------
    WireError
        If anything is damaged, missing, there twice, not finite or more than there can be.
    """
    reader = Reader(data, _KIND)

    def read(linears: tuple[str, ...], tokens: int, d_in: int) -> InputMoments:
        return InputMoments(linears, tokens, _read_body(reader, d_in))

    return read_groups(reader, shapes, read)


def _body_parts(body: Triangle | Sketch | Columns) -> list[bytes | memoryview]:
    if isinstance(body, Columns):
        return [_FORM.pack(_COLUMNS, 0), _little(body.sums)]
    if isinstance(body, Sketch):
        form = _EIGEN if body.kind == "eigen" else _NYSTROM
        scales, halves = _halved(body.vectors)
        arrays = [_little(body.diagonal), _little(scales), _little(halves)]
        return [_FORM.pack(form, body.rank), *arrays]
    if body.precision == "float16":
        arrays = [_little(body.diagonal), _little(body.correlations())]
        return [_FORM.pack(_FLOAT16, 0), *arrays]
    return [_FORM.pack(_FLOAT32, 0), _little(body.values)]


def _read_body(reader: Reader, width: int) -> Triangle | Sketch | Columns:
    form, rank = reader.unpack(_FORM, "the form of its moments")
    sketched = form in (_EIGEN, _NYSTROM)
    if form > _COLUMNS or rank > (width if sketched else 0):
        raise WireError(f"there are no moments of form {form} and rank {rank}.")
    if form == _FLOAT32:
        return Triangle(_read(reader, "its triangle", triangle_size(width)))
    diagonal = _read(reader, "its diagonal", width)
    if form == _COLUMNS:
        return Columns(diagonal)
    if form == _FLOAT16:
        halves = reader.array("<f2", triangle_size(width - 1), "its correlations")
        return Triangle.from_correlations(diagonal, halves.astype(np.float16))
    scales = _read(reader, "its scales", rank)
    check_columns(scales, "Scales")
    vectors = reader.array("<f2", rank * width, "its vectors").astype(np.float32)
    if not np.abs(vectors).max(initial=0) <= 1:
        raise WireError("a sketch's vectors must be from -1 to 1 before they are scaled.")
    vectors = np.ascontiguousarray((vectors.reshape(rank, width) * scales[:, None]).T)
    return Sketch(vectors, diagonal, "eigen" if form == _EIGEN else "nystrom")


def _halved(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """Return the largest magnitude of each vector, (r,), and the vectors divided by it, (r, d)."""
    scales = np.abs(vectors).max(axis=0, initial=0)
    divided = np.divide(vectors, scales, out=np.zeros_like(vectors), where=scales > 0)
    return scales, divided.T.astype(np.float16)


def _read(reader: Reader, what: str, count: int) -> NDArray[np.float32]:
    return reader.array("<f4", count, what).astype(np.float32)


def _little(array: NDArray[np.float32] | NDArray[np.float16]) -> memoryview:
    ordered = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(ordered).data
