"""Read a client's column norms off its masks, then pool them as if they had been sent.

A Wanda mask with rows as comparison groups prunes ``|W_ij| * n_j`` below a threshold of row i: in
logarithms, a weight is kept where ``log|W_ij| + x_j > y_i``. The mask is the one with the largest
sum of ``log|W_ij|`` over kept weights among all that keep as many weights of each row and of each
column (a transport problem, whose dual variables are y and x): its row and column counts say
everything, and norms that reproduce the counts reproduce the mask. They are found by moving rows
and columns in turn to where they keep as many as they should. Two passes over codes of all weights
come close; the rest happens among the few weights near a threshold. What the mask itself adds is a
check: an honest one has no weight on the wrong side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.aggregation.logs import (
    LIMIT,
    UNIT,
    InputLogs,
    Logs,
    Magnitudes,
    kept_columns,
    kept_rows,
)
from fedprune.aggregation.near import FINE, Lists, count_wrong, gather, match, transpose
from fedprune.aggregation.scan import Codes, Counts, Rows, Words, split, sweep
from fedprune.errors import ConfigError, QuorumError
from fedprune.wire.bitmask import BitMask
from fedprune.wire.exact import ExactSums

PASSES = 16  # turns of rows and columns among near weights, at most

_SWEEPS = 8  # at most, until all but one column in 20 are within the margin
_SPLITS = 3  # at most, until hardly a row or column asks for more weights than are near
_MARGIN = 12  # weights on either side of a threshold that count as near it, about
_WIDEST = UNIT  # codes that a band reaches at most; it is never below _NARROWEST
_NARROWEST = 2
_FURTHEST = UNIT // 2  # codes that a column moves at most in one sweep


@dataclass(frozen=True, eq=False)
class Fit:
    """What one client's masks of one input say.

    Parameters
    ----------
    log_norms : NDArray[np.float64]
        Logarithms of the input's norms, shape (d_in,), such that the norms' mean square is one:
        masks say nothing about their scale.
    violations : tuple of float
        For each linear, the share of weights that these norms would prune and the mask keeps, or
        the reverse.
    """

    log_norms: NDArray[np.float64]
    violations: tuple[float, ...]

    @property
    def squares(self) -> NDArray[np.float32]:
        """Squared norms, shape (d_in,); their mean is one."""
        return np.exp(2 * self.log_norms).astype(np.float32)


class Decoder:
    """Norms of one input, decoded from the masks of its linears and pooled over clients.

    A client's fit depends on nothing but the weights and its masks, and sums are exact: neither
    shows in which order clients arrive.

    Parameters
    ----------
    weights : Sequence[NDArray[np.floating]]
        Public weights of the linears that share the input, or their magnitudes, shape
        (d_out, d_in) each. They are not kept, but four bytes for each of their weights.
    start : NDArray[np.floating] or None
        Public guess of the norms' logarithms, shape (d_in,); None: all equal.
    passes : int
        Turns of rows and columns in the last step of a fit, at most.

    Raises
    ------
    ModelError
        If the weights have different widths or hold NaN or infinite values, or the guess does.
    """

    def __init__(
        self,
        weights: Sequence[Magnitudes],
        start: Magnitudes | None = None,
        passes: int = PASSES,
    ) -> None:
        self._logs = InputLogs(weights, start)
        self._passes = passes
        self._sums = ExactSums(self._logs.codes.shape[1])
        self._clients = 0

    @property
    def clients(self) -> int:
        """Number of clients pooled."""
        return self._clients

    def fit(self, masks: Sequence[BitMask]) -> Fit:
        """Return what a client's masks say; nothing is pooled.

        Parameters
        ----------
        masks : Sequence[BitMask]
            Masks of the linears, in their order.

        Raises
        ------
        WireError
            If their shapes are others.
        """
        return _fit(self._logs, masks, self._passes)

    def pool(self, fit: Fit, weight: int = 1) -> None:
        """Add a client's squared norms, relative to their mean.

        Raises
        ------
        ConfigError
            If the weight is below 1.
        """
        if weight < 1:
            raise ConfigError(f"A client's weight must be at least 1, got {weight}.")
        self._sums.add(fit.squares * np.float32(weight))
        self._clients += 1

    def add(self, masks: Sequence[BitMask], weight: int = 1) -> tuple[float, ...]:
        """Fit a client's masks and pool its norms; return the violations of each linear.

        Parameters are those of `fit` and `pool`, errors too.
        """
        fit = self.fit(masks)
        self.pool(fit, weight)
        return fit.violations

    def pooled(self) -> NDArray[np.float32]:
        """Return sums over clients of squared norms, shape (d_in,), as statistics hold them.

        Raises
        ------
        QuorumError
            If no client was added.
        """
        if not self._clients:
            raise QuorumError("No client's masks were decoded, so there are no norms to pool.")
        return self._sums.to_float32()


def fit_norms(
    weights: Sequence[Magnitudes],
    masks: Sequence[BitMask],
    start: Magnitudes | None = None,
    passes: int = PASSES,
) -> Fit:
    """Return the norms behind one client's masks of all linears that share an input.

    Parameters and errors are those of `Decoder` and `Decoder.fit`.
    """
    return _fit(InputLogs(weights, start), masks, passes)


def _fit(logs: InputLogs, masks: Sequence[BitMask], passes: int) -> Fit:
    words = logs.words(masks)
    kept = kept_columns(words, logs.codes.shape[1])
    rows = Rows(kept_rows(words), logs.levels.copy(), logs.density)
    shifts, densities = _approach(logs, kept, rows)
    # As many weights on either side of each column's threshold, and at least of each row's.
    reach = _MARGIN / np.minimum(densities, logs.density)
    bands = np.clip(np.rint(reach), _NARROWEST, _WIDEST).astype(np.int16)
    near = _Near(logs, words, bands)
    for _ in range(_SPLITS):
        near.find(rows, shifts, kept)
        near.settle(passes)
        if near.complete:
            break
        shifts = ((near.shifts + (1 << (FINE - 1))) >> FINE).astype(np.int16)
        rows.levels[:] = near.levels >> FINE
    x = near.shifts / (UNIT << FINE)
    log_norms = _one_sided(x, kept, logs.sizes, near) + logs.start
    log_norms -= 0.5 * _log_mean_exp(2 * log_norms)
    counts = np.split(near.wrong(), np.cumsum([shape[0] for shape in logs.shapes])[:-1])
    shares = (int(c.sum()) / (s[0] * s[1]) for c, s in zip(counts, logs.shapes, strict=True))
    return Fit(log_norms, tuple(shares))


def _approach(logs: InputLogs, kept: Counts, rows: Rows) -> tuple[Codes, Logs]:
    """Return shifts of the columns, to a few weights, and their weights per code."""
    guess, densities = logs.thresholds.guess(kept)
    shifts = _codes(guess)
    above = np.zeros((rows.kept.size, (kept.size + 63) // 64), dtype=np.uint64)
    for _ in range(_SWEEPS):
        sweep(logs.codes, shifts, rows, above)
        missing = kept - kept_columns(above, kept.size)
        shifts = _codes(shifts + np.clip(missing / densities, -_FURTHEST, _FURTHEST))
        if np.count_nonzero(np.abs(missing) > _MARGIN) <= kept.size // 20:
            break
    return shifts, densities


class _Near:
    """The near weights of one client's masks, and rows and columns fitted to them."""

    def __init__(self, logs: InputLogs, mask: Words, bands: Codes) -> None:
        self._logs = logs
        self._mask = mask
        self._bands = bands
        self._above = np.zeros_like(mask)
        self._near = np.zeros_like(mask)

    def find(self, rows: Rows, shifts: Codes, kept: Counts) -> None:
        """List the weights near the thresholds, and what else rows and columns keep."""
        logs = self._logs
        split(logs.codes, shifts, self._bands, rows, self._above, self._near)
        starts = np.zeros(rows.kept.size + 1, dtype=np.int64)
        np.cumsum(kept_rows(self._near), out=starts[1:])
        self._rows = _lists(starts, int(starts[-1]))
        self._kept = np.empty(int(starts[-1]), dtype=np.bool_)
        gather(logs.codes, logs.rest, self._near, self._mask, self._rows, self._kept)
        self._columns = _lists(np.zeros(kept.size + 1, dtype=np.int64), int(starts[-1]))
        transpose(self._rows, self._columns)
        self._keep_rows = rows.kept - kept_rows(self._above)
        self._keep_columns = kept - kept_columns(self._above, kept.size)
        self.shifts = shifts.astype(np.int32) << FINE
        self.levels = rows.levels << FINE

    def settle(self, passes: int) -> None:
        """Move rows and columns in turn to where they keep as many weights as they should.

        Ends when a column in 1,000 did not before it moved, or at the last pass.
        """
        limit = LIMIT << FINE
        for _ in range(passes):
            match(self._rows, self.shifts, self.levels, self._keep_rows)
            lowered = -self.shifts  # seen from a column, its shift lowers what rows ask for
            off = match(self._columns, -self.levels, lowered, self._keep_columns)
            self.shifts = np.clip(-lowered, -limit, limit)
            if 1000 * off <= lowered.size:
                break
        match(self._rows, self.shifts, self.levels, self._keep_rows)

    @property
    def complete(self) -> bool:
        """Whether all but one in 1,000 rows and columns can keep as many weights as they should."""
        without = _beyond(self._keep_rows, self._rows) + _beyond(self._keep_columns, self._columns)
        return 1000 * without <= self.levels.size + self.shifts.size

    def wrong(self) -> NDArray[np.int64]:
        """Return how many weights of each row are on the wrong side of the threshold."""
        far = (self._above ^ self._mask) & ~self._near
        wrong: NDArray[np.int64] = np.bitwise_count(far).sum(axis=1, dtype=np.int64)
        count_wrong(self._rows, self.shifts, self.levels, self._kept, wrong)
        return wrong

    def needed(self, column: int) -> Logs:
        """Return the shifts beyond which each near weight of a column is kept, as logarithms."""
        part = slice(*self._columns.starts[column : column + 2])
        needed = self.levels[self._columns.others[part]] - self._columns.logs[part]
        shifts: Logs = needed / (UNIT << FINE)
        return shifts


def _one_sided(x: Logs, kept: Counts, sizes: Counts, near: _Near) -> Logs:
    """Return the shifts, with columns that keep all or nothing where the others expect them.

    Their masks bound them on one side only. The mean under this bound is that of a normal
    distribution with the other columns' mean and deviation.
    """
    nothing, everything = kept == 0, kept == sizes
    others = x[~(nothing | everything)]
    mean, sd = (float(others.mean()), float(others.std())) if others.size else (0.0, 1.0)
    x = x.copy()
    for column in np.flatnonzero(nothing):
        bound = near.needed(column).min(initial=np.inf) if sizes[column] else np.inf
        x[column] = _mean_below(float(bound), mean, sd)
    for column in np.flatnonzero(everything & ~nothing):
        bound = near.needed(column).max(initial=-np.inf)
        x[column] = -_mean_below(-float(bound), -mean, sd)
    return x


def _mean_below(bound: float, mean: float, sd: float) -> float:
    """Return the mean of a normal distribution under a bound."""
    if sd == 0.0:
        return min(mean, bound)
    away = (bound - mean) / sd
    if away < -30:  # the probability of the tail is no longer a number; its mean is known
        return bound + sd / away
    tail = math.erfc(-away / math.sqrt(2)) / 2
    return mean - sd * math.exp(-(away**2) / 2) / math.sqrt(2 * math.pi) / tail


def _log_mean_exp(values: Logs) -> float:
    """Return the logarithm of the mean of exponentials, which may be too large to hold."""
    top = float(values.max())
    return top + math.log(float(np.exp(values - top).mean()))


def _lists(starts: NDArray[np.int64], size: int) -> Lists:
    return Lists(starts, np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32))


def _beyond(keep: Counts, lists: Lists) -> int:
    """Return how many lines should keep more or fewer weights than are near."""
    return int(np.count_nonzero((keep < 0) | (keep > np.diff(lists.starts))))


def _codes(shifts: Logs) -> Codes:
    return np.clip(np.rint(shifts), -LIMIT, LIMIT).astype(np.int16)
