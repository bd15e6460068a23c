"""What noise costs and what it buys: from (epsilon, delta) to a width of noise, and back.

Everything that leaves the clients in a run is, of each sample, one vector, in parts; noise of one
width, in multiples of the most that a sample can be, is added to all of it. So a run is one
Gaussian mechanism however many messages it takes, and answers may depend on earlier ones. The
figures are those of ``dp-accounting`` (Google), in Renyi divergences (Mironov, arXiv 1702.07476).
Noise of whole numbers is discrete, and there the same divergences hold (Canonne, Kamath and
Steinke, arXiv 2004.00010, theorem 4, and theorem 14 for vectors).
"""

import math
from dataclasses import dataclass
from typing import Any

from fedprune.errors import ConfigError

_LEAST_SCALE = 64.0
"""Of a client's own noise, in units: below, the sum of several would not pass for one noise."""


def noise_multiplier(epsilon: float, delta: float) -> float:
    """Return the standard deviation of the noise, in multiples of what one sample can add.

    `epsilon`, `delta`: the guarantee: with or without a sample, whatever is made of all answers
    happens with probabilities that differ by a factor exp(epsilon) at most, apart from ``delta``.
    Raises ConfigError if `dp-accounting` is not installed.
    """
    library, rdp = _library()
    found = float(
        library.calibrate_dp_mechanism(
            rdp.RdpAccountant,
            lambda multiplier: library.GaussianDpEvent(multiplier),
            epsilon,
            delta,
            tol=1e-7,
        )
    )
    while spent_epsilon(found, delta) > epsilon:
        found *= 1 + 1e-6
    return found


def spent_epsilon(multiplier: float, delta: float) -> float:
    """Return the epsilon of noise that is ``multiplier`` times as wide as what a sample can add.

    Raises ConfigError if `dp-accounting` is not installed.
    """
    library, rdp = _library()
    accountant = rdp.RdpAccountant()
    accountant.compose(library.GaussianDpEvent(multiplier))
    return float(accountant.get_epsilon(delta))


def own_scale(total: float, shares: int) -> float:
    """Return the width of a client's own noise, of which ``shares`` together are ``total`` wide.

    Sums of discrete Gaussians are none, but next to one: in the bound of Kairouz, Liu and Steinke
    (arXiv 2102.06387, theorem 1) what they differ by is 10 n exp(-2 pi^2 scale^2 / 2), which is
    below 1e-17000 from the least width on that is allowed here.

    Raises ConfigError if it would be less wide.
    """
    found = total / math.sqrt(shares)
    if found < _LEAST_SCALE:
        raise ConfigError(
            f"{shares} shares of the noise would be {found:.3g} units wide each, at least "
            f"{_LEAST_SCALE:g} are needed. Lower `privacy.min_cohort`."
        )
    return found


@dataclass(frozen=True)
class Guarantee:
    """What a run promises about each calibration sample."""

    # epsilon, delta: of a sample that is there, or is not
    epsilon: float
    delta: float
    # with the same delta, of a sample that is there, or another one in its place: of numbers that
    # are never negative two differ by the square root of 2 times the most of one
    replaced_epsilon: float
    multiplier: float  # width of the noise in multiples of what a sample can add
    shares: int  # how many clients' noise makes it so wide; 1: each client's own does

    @classmethod
    def of(cls, epsilon: float, delta: float, shares: int) -> "Guarantee":
        """Return the guarantee that is asked for; ConfigError as :func:`noise_multiplier`."""
        multiplier = noise_multiplier(epsilon, delta)
        replaced = spent_epsilon(multiplier / math.sqrt(2), delta)
        return cls(epsilon, delta, replaced, multiplier, shares)


def _library() -> tuple[Any, Any]:
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError:
        raise ConfigError(
            "`privacy.epsilon` needs the package dp-accounting, which is not installed here. "
            "Install it with pip install 'fedprune[dp]'."
        ) from None
    return dp_accounting, rdp
