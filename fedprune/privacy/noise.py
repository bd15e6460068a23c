"""Vectors of bounded length in whole numbers, and noise on them.

The noise is OpenDP's discrete Gaussian: exact, from the operating system's randomness. Noise in
floating point would give away what it is to hide by its last bits (Mironov, CCS 2012).

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

import numpy as np
from numpy.typing import NDArray

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


NORM_BITS = 24
"""What a sample adds to all answers of a run together has a length of at most 2**24 units."""

_SLACK = 1e-9  # of a length: more than the rounding of float64 sums can hide
_PART = 1 << 16  # numbers that are drawn at once


def part_norm(columns: int, total: int) -> int:
    """Return the most units that a sample's part of so many numbers may be long, of ``total``.

    The squares of all parts add up to the square of the whole at most.
    """
    return math.isqrt((1 << 2 * NORM_BITS) * columns // total)


def unit(total: int, clip: float) -> float:
    """Return how many units a number is that is as large as public text makes it.

    ``clip`` times as long as public text's may a sample's ``total`` numbers of a run be.
    """
    return (1 << NORM_BITS) / (clip * math.sqrt(total))


def clipped(values: NDArray[np.float64], norm: int) -> NDArray[np.int64]:
    """Return finite numbers, none negative, as whole ones of a length of ``norm`` units at most."""
    length = math.sqrt(float(np.square(values).sum())) * (1 + _SLACK)
    shrunk = values * (norm / length) if length > norm else values
    return np.floor(shrunk).astype(np.int64)  # towards zero: never longer


def discrete_gaussian(count: int, scale: float) -> NDArray[np.int64]:
    """Return whole numbers of the discrete Gaussian distribution around zero, shape (count,).

    `count`: how many; about 20 microseconds each. `scale`: the distribution's parameter, which is
    its standard deviation where that is above 1. Raises ConfigError if `opendp` is not installed.
    """
    try:
        import opendp.prelude as dp
    except ImportError:
        raise ConfigError(
            "`privacy.epsilon` needs the package opendp, which is not installed here. Install it "
            "with pip install 'fedprune[dp]'."
        ) from None
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    draw = dp.m.make_gaussian(*space, scale=scale)
    found = np.empty(count, dtype=np.int64)
    for start in range(0, count, _PART):
        part = found[start : start + _PART]
        part[:] = draw([0] * len(part))
    return found
