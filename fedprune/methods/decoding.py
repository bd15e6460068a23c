"""Read a client's column norms off its masks, then pool them as if they had been sent.

A Wanda mask with rows as comparison groups prunes ``|W_ij| * n_j`` below a threshold of row i: in
logarithms, a weight is kept where ``log|W_ij| + x_j > y_i``. The mask is the one with the largest
sum of ``log|W_ij|`` over kept weights among all that keep as many weights of each row and of each
column (a transport problem, whose dual variables are y and x): its row and column counts say
everything, and norms that reproduce the counts reproduce the mask. They are found by moving rows
and columns in turn to where they keep as many as they should: a few times over all weights, then
among the few near a threshold. What the mask itself adds is a check: an honest one has no weight on
the wrong side. That a mask tells so much is also the measure of what it reveals of a client.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ModelError, QuorumError, WireError
from fedprune.methods.state import Arrays, numbers
from fedprune.wire.masks import BitMask
from fedprune.wire.sums import ExactSums

Magnitudes = NDArray[np.floating]
Logs = NDArray[np.float64]
Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]

_SWEEPS = 2  # turns of rows and columns over all weights
_PASSES = 16  # turns of rows and columns among the weights near a threshold, at most
_SEARCHES = 3  # for near weights, at most, until hardly a line asks for more than are near
_MARGIN = 12  # weights on either side of a line's threshold that are near it
_WIDEST = 1.0  # how far a near weight is from its threshold at most
_APART = 1e-9  # how far a threshold is from a weight that it goes as far as
_LIMIT = 8.0  # of a shift: a factor of 3,000 either way
_FEW = 1000  # one row or column in so many may miss its count: none of a small matrix
_WEIGHTS = 1 << 18  # weights of a step


@dataclass(frozen=True, eq=False)
class Fit:
    """What one client's masks of one input say."""

    # logarithms of the input's norms, shape (d_in,), such that the norms' mean square is one: masks
    # say nothing about their scale
    log_norms: Logs
    # for each linear, the share of weights that these norms would prune and the mask keeps, or the
    # reverse
    violations: tuple[float, ...]

    @property
    def squares(self) -> NDArray[np.float32]:
        """Squared norms, shape (d_in,); their mean is one."""
        return np.exp(2 * self.log_norms).astype(np.float32)


class Decoder:
    """Norms of one input, decoded from the masks of its linears and pooled over clients.

    A client's fit depends on nothing but the weights and its masks, and sums are exact: neither
    shows in which order clients arrive.

    `weights`: public weights of the linears that share the input, or their magnitudes, shape
    (d_out, d_in) each; kept as float32. Raises ModelError if they have different widths or hold NaN
    or infinite values.
    """

    def __init__(self, weights: Sequence[Magnitudes]) -> None:
        self._shapes = [weight.shape for weight in weights]
        if len({shape[1:] for shape in self._shapes}) != 1 or weights[0].ndim != 2:
            raise ModelError(
                f"The linears of one input need weights of one width, got shapes {self._shapes}."
            )
        self._weights = np.abs(np.concatenate(weights), dtype=np.float32)
        # Written so that NaN fails, which is not below infinity.
        if not self._weights.max(initial=0) < np.inf:
            raise ModelError("Weights hold NaN or infinite values, so no mask can be decoded.")
        self._sums = ExactSums(self._weights.shape[1])
        self._clients = 0

    @property
    def clients(self) -> int:
        """Number of clients pooled."""
        return self._clients

    def fit(self, masks: Sequence[BitMask]) -> Fit:
        """Return what a client's masks say; nothing is pooled.

        Raises WireError if their shapes are others.
        """
        shapes = [mask.shape for mask in masks]
        if shapes != self._shapes:
            raise WireError(f"Masks to decode must be of shapes {self._shapes}, got {shapes}.")
        kept = np.concatenate([mask.to_bool() for mask in masks])
        kept &= self._weights > 0  # zeros are kept by their index alone; they say nothing
        log_norms, wrong = _Transport(self._weights, kept).solve()
        log_norms -= log_norms.max()  # exponentials may be too large to hold
        log_norms -= 0.5 * np.log(np.exp(2 * log_norms).mean())
        by_linear = np.split(wrong, np.cumsum([rows for rows, _ in shapes])[:-1])
        shares = (int(n.sum()) / (s[0] * s[1]) for n, s in zip(by_linear, shapes, strict=True))
        return Fit(log_norms, tuple(shares))

    def add(self, masks: Sequence[BitMask], weight: int = 1) -> tuple[float, ...]:
        """Fit a client's masks and pool its squared norms, relative to their mean.

        Returns the violations of each linear. Raises WireError as :meth:`fit`.
        """
        fit = self.fit(masks)
        self._sums.add(fit.squares * np.float32(weight))
        self._clients += 1
        return fit.violations

    def pooled(self) -> NDArray[np.float32]:
        """Return sums over clients of squared norms, shape (d_in,), as statistics hold them.

        Raises QuorumError if no client was added.
        """
        if not self._clients:
            raise QuorumError("No client's masks were decoded, so there are no norms to pool.")
        return self._sums.to_float32()

    def state(self) -> Arrays:
        """Return the pooled norms as arrays."""
        high, low = self._sums.words()
        return {"high": high, "low": low, "counts": numbers(self._clients)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another decoder's."""
        (self._clients,) = (int(n) for n in arrays["counts"])
        self._sums = ExactSums.from_words(arrays["high"], arrays["low"])


class _Transport:
    """The rows' thresholds y and the columns' shifts x of one client's masks."""

    def __init__(self, weights: NDArray[np.float32], kept: Flags) -> None:
        self._weights, self._kept = weights, kept
        self._row_counts = np.count_nonzero(kept, axis=1)
        self._column_counts = np.count_nonzero(kept, axis=0)
        self._x, self._y = np.zeros(weights.shape[1]), np.zeros(len(weights))
        self._row_widths, self._column_widths = np.ones_like(self._y), np.ones_like(self._x)

    def solve(self) -> tuple[Logs, Counts]:
        """Return the shifts, up to a constant, and each row's weights on the wrong side."""
        for _ in range(_SWEEPS):
            self._move_rows()
            self._move_columns()
        self._move_rows()
        for _ in range(_SEARCHES):
            wrong, complete = self._settle()
            if complete:
                break
        return self._one_sided(), wrong

    def _logs(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        with np.errstate(divide="ignore"):
            logs: NDArray[np.float32] = np.log(self._weights[rows, columns])
        return logs

    def _move_rows(self) -> None:
        """Move each row's threshold to where it keeps as many of all its weights as it should."""
        everything, shifts = slice(None), self._x.astype(np.float32)
        for rows in _steps(*self._weights.shape):
            ordered = np.sort(self._logs(rows, everything) + shifts, axis=1)
            found = _thresholds(ordered, self._row_counts[rows], self._y[rows])
            self._y[rows], self._row_widths[rows] = found

    def _move_columns(self) -> None:
        """Move each column likewise; seen from a column, its shift lowers what rows ask for."""
        everything, levels = slice(None), self._y.astype(np.float32)[:, np.newaxis]
        for columns in _steps(*self._weights.shape[::-1]):
            ordered = np.sort((self._logs(everything, columns) - levels).T, axis=1)
            found = _thresholds(ordered, self._column_counts[columns], -self._x[columns])
            self._x[columns], self._column_widths[columns] = -found[0], found[1]
        np.clip(self._x, -_LIMIT, _LIMIT, out=self._x)

    def _settle(self) -> tuple[Counts, bool]:
        """Move rows and columns among near weights until hardly one keeps another number.

        Returns each row's weights on the wrong side, and whether nearly all rows and columns can
        keep as many weights as they should.
        """
        places, above, wrong = self._near()
        logs = np.log(self._weights[places].astype(np.float64))
        rows = _Lines(places[0], places[1], logs, len(self._y))
        columns = _Lines(places[1], places[0], logs, len(self._x))
        keep_rows = self._row_counts - above[0]
        keep_columns = self._column_counts - above[1]
        for _ in range(_PASSES):
            self._y = rows.thresholds(self._x, keep_rows, self._y)
            off = columns.above(-self._y, -self._x) != keep_columns
            self._x = -columns.thresholds(-self._y, keep_columns, -self._x)
            np.clip(self._x, -_LIMIT, _LIMIT, out=self._x)
            if _FEW * np.count_nonzero(off) <= off.size:
                break
        self._y = rows.thresholds(self._x, keep_rows, self._y)
        kept = logs + self._x[places[1]] > self._y[places[0]]
        wrong += np.bincount(places[0][kept != self._kept[places]], minlength=wrong.size)
        without = rows.beyond(keep_rows) + columns.beyond(keep_columns)
        return wrong, _FEW * without <= self._x.size + self._y.size

    def _near(self) -> tuple[tuple[Counts, Counts], tuple[Counts, Counts], Counts]:
        """Return the places of near weights, and what rows and columns keep of the others.

        And how many of the others are on the wrong side, a row.
        """
        above = np.zeros(len(self._y), np.int64), np.zeros(len(self._x), np.int64)
        wrong, found = np.zeros(len(self._y), np.int64), []
        for rows in _steps(*self._weights.shape):
            away = self._logs(rows, slice(None)) + self._x.astype(np.float32)
            away -= self._y[rows, np.newaxis].astype(np.float32)
            reach = np.maximum(self._row_widths[rows, np.newaxis], self._column_widths)
            near = np.abs(away) <= reach.astype(np.float32)
            far = (away > 0) & ~near
            above[0][rows] = np.count_nonzero(far, axis=1)
            above[1][:] += np.count_nonzero(far, axis=0)
            wrong[rows] = np.count_nonzero((far ^ self._kept[rows]) & ~near, axis=1)
            at = np.nonzero(near)
            found.append((at[0] + rows.start, at[1]))
        first, second = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return (first, second), above, wrong

    def _one_sided(self) -> Logs:
        """Return the shifts, with columns that keep all or nothing where the others expect them.

        Their masks bound them on one side only. The mean under this bound is that of a normal
        distribution with the other columns' mean and deviation.
        """
        nothing = self._column_counts == 0
        everything = self._column_counts == np.count_nonzero(self._weights, axis=0)
        x = self._x.copy()
        others = x[~(nothing | everything)]
        mean, sd = (float(others.mean()), float(others.std())) if others.size else (0.0, 1.0)
        for column in np.flatnonzero(nothing | everything).tolist():
            with np.errstate(divide="ignore"):
                logs = np.log(self._weights[:, column].astype(np.float64))
            needed = (self._y - logs)[logs > -np.inf]  # beyond it, each weight is kept
            if nothing[column]:
                x[column] = _mean_below(float(needed.min(initial=np.inf)), mean, sd)
            else:
                x[column] = -_mean_below(-float(needed.max()), -mean, sd)
        return x


class _Lines:
    """Near weights by line, a row or a column: one row of a matrix each, -inf where none is left.

    `lines`, `others`: of each weight, its line, and its line of the other kind.
    """

    def __init__(self, lines: Counts, others: Counts, logs: Logs, count: int) -> None:
        order = np.argsort(lines, kind="stable")
        self._sizes = np.bincount(lines, minlength=count)
        starts = np.cumsum(self._sizes) - self._sizes
        at = lines[order], np.arange(lines.size) - np.repeat(starts, self._sizes)
        shape = count, int(self._sizes.max(initial=1))
        self._logs, self._others = np.full(shape, -np.inf), np.zeros(shape, np.int64)
        self._logs[at], self._others[at] = logs[order], others[order]

    def thresholds(self, shifts: Logs, keep: Counts, before: Logs) -> Logs:
        """Return where each line keeps as many, given the shifts of the lines of the other kind."""
        ordered = np.sort(self._logs + shifts[self._others], axis=1)
        return _thresholds(ordered, np.clip(keep, 0, self._sizes), before)[0]

    def above(self, shifts: Logs, levels: Logs) -> Counts:
        """Return how many weights of each line are above its level."""
        above = self._logs + shifts[self._others] > levels[:, np.newaxis]
        counts: Counts = np.count_nonzero(above, axis=1)
        return counts

    def beyond(self, keep: Counts) -> int:
        """Return how many lines should keep more or fewer weights than are near."""
        return int(np.count_nonzero((keep < 0) | (keep > self._sizes)))


def _steps(lines: int, width: int) -> list[slice]:
    size = max(_WEIGHTS // width, 1)
    return [slice(start, min(start + size, lines)) for start in range(0, lines, size)]


def _thresholds(ordered: Magnitudes, keep: Counts, before: Logs) -> tuple[Logs, Logs]:
    """Return each line's threshold, and how far away the `_MARGIN`-th weights next to it are.

    Halfway between the lowest weight above and the highest below. One that no weight bounds on one
    side stays as it was, or goes as far as the other side asks for.

    `ordered`: ascending, shape (lines, size), -inf where there is no weight. `keep`: how many of a
    line are above its threshold.
    """
    size = ordered.shape[1]

    def ranked(place: Counts) -> Logs:
        found = np.take_along_axis(ordered, place.clip(0, size - 1)[:, np.newaxis], axis=1)[:, 0]
        return np.where(place < 0, -np.inf, np.where(place < size, found, np.inf))

    first = size - keep  # the lowest above
    above, below = ranked(first), ranked(first - 1)
    inside = np.isfinite(above) & np.isfinite(below)
    with np.errstate(invalid="ignore"):
        levels = np.where(inside, (above + below) / 2, before)
    levels = np.where(inside, levels, np.clip(levels, below + _APART, above - _APART))
    widths = np.maximum(ranked(first + _MARGIN - 1) - levels, levels - ranked(first - _MARGIN))
    return levels, np.minimum(widths, _WIDEST)


def _mean_below(bound: float, mean: float, sd: float) -> float:
    """Return the mean of a normal distribution under a bound."""
    if sd == 0.0:
        return min(mean, bound)
    away = (bound - mean) / sd
    if away < -30:  # the probability of the tail is no longer a number; its mean is known
        return bound + sd / away
    tail = math.erfc(-away / math.sqrt(2)) / 2
    return mean - sd * math.exp(-(away**2) / 2) / math.sqrt(2 * math.pi) / tail
