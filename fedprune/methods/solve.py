"""Find shifts of the columns that reproduce a client's masks: the steps of one fit.

`sweep` moves rows to where they keep as many weights as they should, then columns by what they
keep too many; twice over all weights is enough. `split` lists what is left near a threshold.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedprune.methods.logs import LIMIT, UNIT, InputLogs, Logs, kept_columns, kept_rows
from fedprune.methods.near import FINE, Lists, count_wrong, gather, match, transpose
from fedprune.methods.scan import Codes, Counts, Rows, Words, split, sweep

_SWEEPS = 8  # at most, until all but one column in 20 are within the margin
_SPLITS = 3  # at most, until hardly a row or column asks for more weights than are near
_MARGIN = 12  # weights on either side of a threshold that count as near it, about
_WIDEST = UNIT  # codes that a band reaches at most; it is never below _NARROWEST
_NARROWEST = 2
_FURTHEST = UNIT // 2  # codes that a column moves at most in one sweep
_FEW = 1000  # one row or column in so many may miss its count: none of a small matrix


def solve(logs: InputLogs, mask: Words, passes: int) -> tuple[Logs, NDArray[np.int64]]:
    """Return shifts of the columns, and how many weights of each row are on the wrong side.

    Parameters
    ----------
    logs : InputLogs
        The weights.
    mask : Words
        The client's masks, as `InputLogs.words` returns them.
    passes : int
        Turns of rows and columns among near weights, at most.

    Returns
    -------
    tuple of NDArray
        Natural logarithms relative to `logs.start` and up to a constant, float64, shape (d_in,);
        and counts, int64, shape (rows,).
    """
    kept = kept_columns(mask, logs.codes.shape[1])
    rows = Rows(kept_rows(mask), logs.levels.copy(), logs.density)
    shifts, densities = _approach(logs, kept, rows)
    # As many weights on either side of each column's threshold, and at least of each row's.
    reach = _MARGIN / np.minimum(densities, logs.density)
    bands = np.clip(np.rint(reach), _NARROWEST, _WIDEST).astype(np.int16)
    near = _Near(logs, mask, bands)
    for _ in range(_SPLITS):
        near.find(rows, shifts, kept)
        near.settle(passes)
        if near.complete:
            break
        shifts = ((near.shifts + (1 << (FINE - 1))) >> FINE).astype(np.int16)
        rows.levels[:] = near.levels >> FINE
    return _one_sided(near.shifts / (UNIT << FINE), kept, logs.sizes, near), near.wrong()


def _approach(logs: InputLogs, kept: Counts, rows: Rows) -> tuple[Codes, Logs]:
    """Return shifts of the columns, to a few weights, and their weights per code."""
    guess, densities = logs.thresholds.guess(kept)
    shifts = _codes(np.where(logs.sizes > 0, guess, 0.0))
    above = np.zeros((rows.kept.size, (kept.size + 63) // 64), dtype=np.uint64)
    for _ in range(_SWEEPS):
        sweep(logs.codes, shifts, rows, above)
        logs.without_zeros(above)
        missing = kept - kept_columns(above, kept.size)
        step: Logs = np.clip(missing / densities, -_FURTHEST, _FURTHEST)
        shifts = _codes(shifts.astype(np.float64) + step)
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
        logs.without_zeros(self._above)
        logs.without_zeros(self._near)
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

        Ends when hardly a column keeps another number before it moves, or at the last pass.
        """
        limit = LIMIT << FINE
        for _ in range(passes):
            match(self._rows, self.shifts, self.levels, self._keep_rows)
            lowered = -self.shifts  # seen from a column, its shift lowers what rows ask for
            off = match(self._columns, -self.levels, lowered, self._keep_columns)
            self.shifts = np.clip(-lowered, -limit, limit)
            if _FEW * off <= lowered.size:
                break
        match(self._rows, self.shifts, self.levels, self._keep_rows)

    @property
    def complete(self) -> bool:
        """Whether nearly all rows and columns can keep as many weights as they should."""
        without = _beyond(self._keep_rows, self._rows) + _beyond(self._keep_columns, self._columns)
        return _FEW * without <= self.levels.size + self.shifts.size

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
    for column in np.flatnonzero(nothing).tolist():
        bound = near.needed(column).min(initial=np.inf) if sizes[column] else np.inf
        x[column] = _mean_below(float(bound), mean, sd)
    for column in np.flatnonzero(everything & ~nothing).tolist():
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


def _lists(starts: NDArray[np.int64], size: int) -> Lists:
    return Lists(starts, np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32))


def _beyond(keep: Counts, lists: Lists) -> int:
    """Return how many lines should keep more or fewer weights than are near."""
    return int(np.count_nonzero((keep < 0) | (keep > np.diff(lists.starts))))


def _codes(shifts: Logs) -> Codes:
    return np.clip(np.rint(shifts), -LIMIT, LIMIT).astype(np.int16)
