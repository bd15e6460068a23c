"""Vectors of bounded length in whole numbers, and noise on them.

The noise is OpenDP's discrete Gaussian: exact, from the operating system's randomness. Noise in
floating point would give away what it is to hide by its last bits (Mironov, CCS 2012).
"""

import math

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ConfigError

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

    `total`: numbers of a sample in all answers of a run. `clip`: how many times as long as that of
    public text a sample may be.
    """
    return (1 << NORM_BITS) / (clip * math.sqrt(total))


def clipped(values: NDArray[np.float64], norm: int) -> NDArray[np.int64]:
    """Return numbers as whole ones, all made smaller alike where they are longer than ``norm``.

    `values`: in units, none negative, finite, shape (columns,). `norm`: the most that the square
    root of the sum of their squares may be.
    """
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
