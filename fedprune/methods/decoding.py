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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ConfigError, QuorumError
from fedprune.methods.logs import InputLogs, Magnitudes
from fedprune.methods.solve import solve
from fedprune.methods.state import Arrays, numbers
from fedprune.wire.masks import BitMask
from fedprune.wire.sums import ExactSums

PASSES = 16  # turns of rows and columns in the last step of a fit, at most


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

    def state(self) -> Arrays:
        """Return the pooled norms as arrays."""
        high, low = self._sums.words()
        return {"high": high, "low": low, "counts": numbers(self._clients)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another decoder's."""
        (self._clients,) = (int(n) for n in arrays["counts"])
        self._sums = ExactSums.from_words(arrays["high"], arrays["low"])


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
    shifts, wrong = solve(logs, logs.words(masks), passes)
    log_norms = shifts + logs.start
    top = log_norms.max()  # taken out, as exponentials may be too large to hold
    log_norms -= top
    log_norms -= 0.5 * np.log(np.exp(2 * log_norms).mean())
    ends = np.cumsum([shape[0] for shape in logs.shapes])
    counts = np.split(wrong, ends[:-1])
    shares = (int(c.sum()) / (s[0] * s[1]) for c, s in zip(counts, logs.shapes, strict=True))
    return Fit(log_norms, tuple(shares))
