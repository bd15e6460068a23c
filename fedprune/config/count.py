"""Comparison groups, and how many weights of a group are pruned; clients and server share it."""

import math
from fractions import Fraction
from typing import Literal

GROUPS = ("layer", "row", "column")

Rounding = Literal["floor", "ceil"]


def pruned_count(size: int, sparsity: float, rounding: Rounding = "floor") -> int:
    """Return size * sparsity rounded, taking the sparsity as the decimal number that it prints as.

    ``int(100 * 0.29)`` is 28, because 0.29 is stored slightly too small; this returns 29.

    Parameters
    ----------
    size : int
        Weights of the group.
    sparsity : float
        Share to prune.
    rounding : {"floor", "ceil"}
        To the whole number below, or to the one above.
    """
    exact = size * Fraction(str(float(sparsity)))
    return math.floor(exact) if rounding == "floor" else math.ceil(exact)
