"""What the server knows of the weights of one input before any mask arrives.

Logarithms of magnitudes, in fixed point and centred by row, are held in two halves: codes of 16
bits, of which a pass over all weights reads nothing else, and the rest, looked up where it matters.
Together they take four bytes a weight.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ModelError, WireError
from fedprune.methods.near import FINE
from fedprune.methods.scan import Codes, Counts, Rows, Words, column_counts, sweep
from fedprune.wire.masks import BitMask

Magnitudes = NDArray[np.floating]
Logs = NDArray[np.float64]

UNIT = 1 << 11  # codes of one natural logarithm: steps of 0.05 %
LIMIT = 8 * UNIT - 1  # codes and shifts end here, at a factor of 3,000 either way

_BLOCK = 1 << 16  # weights of a step: their logarithms stay in a core's cache
_COLUMNS = 64  # columns of a step
_SAMPLE = 1 << 20  # weights that the density is measured on
_DENSITY = 0.35 / UNIT  # share of a row's weights per code: that of normal ones, at half sparsity
_KNOTS = 256  # ranks at which a column's thresholds are tabled, evenly spaced,
_ENDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # and at these from either end
_NEIGHBOUR = 64  # codes from the outermost threshold to where nothing more is kept or pruned
_NO_WEIGHTS = "The linears of one input need weights of one width, got shapes {}."


class Thresholds(NamedTuple):
    """Where columns must be to keep a given number of weights, with rows where they are for all.

    Attributes
    ----------
    ranks : NDArray[np.int64]
        Tabled numbers of kept weights, rising from 0 to all, shape (knots,).
    shifts : NDArray[np.int32]
        Codes by which to shift each column, shape (d_in, knots).
    """

    ranks: NDArray[np.int64]
    shifts: Counts

    def guess(self, kept: Counts) -> tuple[Logs, Logs]:
        """Return shifts for the kept weights of each column, and weights per code around them."""
        ranks, shifts = self
        place = np.minimum(np.searchsorted(ranks, kept, side="right") - 1, ranks.size - 2)
        columns = np.arange(kept.size)
        lower, upper = shifts[columns, place], shifts[columns, place + 1]
        share = (kept - ranks[place]) / (ranks[place + 1] - ranks[place])
        first, last = np.maximum(place - 2, 0), np.minimum(place + 3, ranks.size - 1)
        width = np.maximum(shifts[columns, last] - shifts[columns, first], 1)
        return lower + (upper - lower) * share, (ranks[last] - ranks[first]) / width


class InputLogs:
    """The logarithms of the weights of all linears that share one input, row after row.

    Parameters
    ----------
    weights : Sequence[NDArray[np.floating]]
        Weights or their magnitudes, shape (d_out, d_in) each.
    start : NDArray[np.floating] or None
        Logarithms of norms to begin with, shape (d_in,), the same for all clients; None: equal.

    Attributes
    ----------
    codes, rest : NDArray[np.int16]
        A logarithm is ``(code << FINE) + rest`` in units of 1 / (UNIT << FINE), relative to its
        row and including `start`; shape (rows, d_in). Zeros have the lowest code.
    levels : NDArray[np.int32]
        A code of each row with about half of its weights above, shape (rows,).
    density : float
        Weights of a row per code around this level.
    thresholds : Thresholds
        A first guess of a client's columns.

    Raises
    ------
    ModelError
        If there is no weight, widths differ, or a number is NaN or infinite.
    """

    def __init__(self, weights: Sequence[Magnitudes], start: Magnitudes | None = None) -> None:
        self.shapes = [weight.shape for weight in weights]
        if not weights or len({shape[1:] for shape in self.shapes}) > 1 or weights[0].ndim != 2:
            raise ModelError(_NO_WEIGHTS.format(self.shapes))
        rows, d_in = sum(shape[0] for shape in self.shapes), self.shapes[0][1]
        self.start: Logs = np.zeros(d_in) if start is None else start.astype(np.float64)
        if self.start.shape != (d_in,) or not np.isfinite(self.start).all():
            raise ModelError(f"Norms to begin with must be {d_in} finite logarithms.")
        self.codes: Codes = np.empty((rows, d_in), dtype=np.int16)
        self.rest: Codes = np.empty((rows, d_in), dtype=np.int16)
        self._nonzero: Words = np.empty((rows, (d_in + 63) // 64), dtype=np.uint64)
        self._read(weights)
        self._zeros = int(np.bitwise_count(self._nonzero).sum(dtype=np.int64)) < rows * d_in
        self.sizes = kept_columns(self._nonzero, d_in)
        self.levels = self._middle()
        self.density = self._density()
        self.thresholds = self._thresholds()

    def words(self, masks: Sequence[BitMask]) -> Words:
        """Return a client's masks as rows of words, without the zero weights that it keeps.

        Zeros are pruned or kept by their index alone; they say nothing about norms.

        Raises
        ------
        WireError
            If the masks are not those of the linears.
        """
        shapes = [mask.shape for mask in masks]
        if shapes != self.shapes:
            raise WireError(f"Masks to decode must be of shapes {self.shapes}, got {shapes}.")
        words = np.concatenate([_row_words(mask) for mask in masks])
        self.without_zeros(words)
        return words

    def without_zeros(self, words: Words) -> None:
        """Clear the bits of zero weights, in place."""
        if self._zeros:
            words &= self._nonzero

    def _read(self, weights: Sequence[Magnitudes]) -> None:
        row = 0
        for block in _blocks(weights):
            with np.errstate(divide="ignore"):
                logs: Logs = np.log(np.abs(block).astype(np.float64))
            # Written so that NaN fails, which is not below infinity.
            if not logs.max(initial=0) < np.inf:
                raise ModelError("Weights hold NaN or infinite values, so no mask can be decoded.")
            logs += self.start
            found = logs > -np.inf
            logs -= _centres(logs, found)
            logs *= UNIT << FINE
            np.clip(np.rint(logs, out=logs), -(LIMIT << FINE), LIMIT << FINE, out=logs)
            fixed = logs.astype(np.int32)
            part = slice(row, row + len(block))
            self.codes[part] = (fixed + (1 << (FINE - 1))) >> FINE
            self.rest[part] = fixed - (self.codes[part].astype(np.int32) << FINE)
            self._nonzero[part] = _to_words(found)
            row += len(block)

    def _middle(self) -> Counts:
        rows, d_in = self.codes.shape
        half = np.full(rows, d_in // 2, dtype=np.int32)
        levels = np.zeros(rows, dtype=np.int32)
        shifts = np.zeros(d_in, dtype=np.int16)
        found = Rows(half, levels, max(_DENSITY * d_in, 1e-3))
        sweep(self.codes, shifts, found, np.zeros_like(self._nonzero))
        return levels

    def _density(self) -> float:
        step = max(self.codes.size // _SAMPLE, 1)
        away = self.codes[::step] - self.levels[::step, np.newaxis]
        close = int(np.count_nonzero(np.abs(away) <= UNIT // 16))
        return max(close / len(away) / (UNIT // 8 + 1), 1e-3)

    def _thresholds(self) -> Thresholds:
        rows, d_in = self.codes.shape
        even = np.rint(np.linspace(0, rows, min(_KNOTS, rows) + 1)).astype(np.int64)
        ends = np.array([rank for rank in _ENDS if rank < rows], dtype=np.int64)
        ranks = np.unique(np.concatenate((even, ends, rows - ends)))
        shifts = np.empty((d_in, ranks.size), dtype=np.int32)
        levels = np.clip(self.levels, -LIMIT, LIMIT).astype(np.int16)  # differences fit, too
        for first in range(0, d_in, _COLUMNS):
            part = levels - self.codes[:, first : first + _COLUMNS].T
            needed = np.sort(part.copy(order="C"), axis=1, kind="stable")  # by radix, of 16 bits
            below = needed[:, np.maximum(ranks - 1, 0)].astype(np.int32)
            above = needed[:, np.minimum(ranks, rows - 1)].astype(np.int32)
            below[:, 0] -= _NEIGHBOUR
            above[:, -1] += _NEIGHBOUR
            shifts[first : first + _COLUMNS] = (below + above) >> 1
        return Thresholds(ranks, shifts)


def kept_columns(words: Words, d_in: int) -> Counts:
    """Return the number of set bits of each column, shape (d_in,)."""
    counts = np.empty(d_in, dtype=np.int32)
    column_counts(words, counts)
    return counts


def kept_rows(words: Words) -> Counts:
    """Return the number of set bits of each row, shape (rows,)."""
    counts: Counts = np.bitwise_count(words).sum(axis=1, dtype=np.int32)
    return counts


def _blocks(weights: Sequence[Magnitudes]) -> Iterator[Magnitudes]:
    for weight in weights:
        rows = max(_BLOCK // weight.shape[1], 1)
        for first in range(0, weight.shape[0], rows):
            yield weight[first : first + rows]


def _centres(logs: Logs, found: NDArray[np.bool_]) -> Logs:
    """Return the mean of each row's logarithms of weights that are not zero, shape (rows, 1)."""
    if found.all():
        means: Logs = logs.mean(axis=1, keepdims=True)
    else:
        sums = np.where(found, logs, 0.0).sum(axis=1, keepdims=True)
        means = sums / np.maximum(found.sum(axis=1, keepdims=True), 1)
    return means


def _row_words(mask: BitMask) -> Words:
    d_out, d_in = mask.shape
    if d_in % 64 == 0:
        return mask.bits.view(np.uint64).reshape(d_out, -1)
    return _to_words(mask.to_bool())


def _to_words(flags: NDArray[np.bool_]) -> Words:
    """Return each row's bits as whole words, padded with zeros."""
    rows, d_in = flags.shape
    words = np.zeros((rows, (d_in + 63) // 64), dtype=np.uint64)
    packed = np.packbits(flags, axis=1, bitorder="little")
    words.view(np.uint8)[:, : packed.shape[1]] = packed
    return words
