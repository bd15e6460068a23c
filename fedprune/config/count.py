"""Comparison groups, and how many weights of a group are pruned; clients and server share it."""

from fractions import Fraction

GROUPS = ("layer", "row", "column")


def pruned_count(size: int, sparsity: float) -> int:
    """Return floor(size * sparsity), taking the sparsity as the decimal number that it prints as.

    ``int(100 * 0.29)`` is 28, because 0.29 is stored slightly too small; this returns 29.
    """
    return int(size * Fraction(str(float(sparsity))))
