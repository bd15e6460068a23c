"""What calibration leaves behind of a linear's inputs: sums over tokens, additive over clients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fedprune.pruning.hessian import Factor, inverse_factor
from fedprune.wire.sums import ExactSums

Kind = Literal["nothing", "columns", "moments"]
"""How much a pruner must know of the inputs: nothing, one number a column, or all products."""


@dataclass
class ColumnStatistics:
    """Sum of squares of each input of a linear over all calibration tokens.

    Additive: the statistics of two sets of tokens are the sums of both fields.

    Parameters
    ----------
    sum_squares : Tensor
        Sum over tokens of x_j**2, float32, shape (d_in,).
    tokens : int
        Number of tokens summed.
    exact : ExactSums or None
        The same sums before they were rounded to float32, where they were recorded.
    """

    sum_squares: Tensor
    tokens: int
    exact: ExactSums | None = None

    @property
    def norms(self) -> Tensor:
        """L2 norm of each input over all tokens, float32, shape (d_in,)."""
        # The root of a float32 in double precision, rounded once, is the correctly rounded one on
        # every machine; some processors' float32 vector roots are an ulp off.
        return self.sum_squares.double().sqrt().float()


@dataclass
class MomentStatistics:
    """Second moments of a linear's inputs: G = sum_t x_t x_t^T, the Hessian of its output error.

    Additive as :class:`ColumnStatistics`. Linears that share an input share one object, so that
    what is derived from it is computed once.

    Parameters
    ----------
    moments : Tensor
        Symmetric, float32, shape (d_in, d_in).
    tokens : int
        Number of tokens summed.
    """

    moments: Tensor
    tokens: int
    _factors: dict[float, Factor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def columns(self) -> ColumnStatistics:
        """The diagonal: sums of squares, rounded."""
        return ColumnStatistics(self.moments.diagonal().clone(), self.tokens)

    def factor(self, damping: float) -> Factor:
        """Return the factor of the damped inverse, computed once (see `hessian.inverse_factor`)."""
        if damping not in self._factors:
            self._factors[damping] = inverse_factor(self.moments, damping)
        return self._factors[damping]


Statistics = ColumnStatistics | MomentStatistics


def shared_inputs(statistics: Mapping[str, Statistics]) -> list[tuple[tuple[str, ...], Statistics]]:
    """Return each distinct input's linears and statistics, in the order of their first linear.

    Parameters
    ----------
    statistics : Mapping[str, ColumnStatistics or MomentStatistics]
        Name of the linear -> statistics; linears that read the same input share the object.
    """
    names: dict[int, list[str]] = {}
    for name, found in statistics.items():
        names.setdefault(id(found), []).append(name)
    return [(tuple(group), statistics[group[0]]) for group in names.values()]
