"""Where zeros may lie and how many: patterns, comparison groups, the count that all share."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from fedprune.errors import ConfigError

_STRUCTURED = re.compile(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class Pattern:
    """Where the surviving weights may lie.

    Both fields are ``None`` for `unstructured`. Otherwise ``n`` weights **survive** of every ``m``
    consecutive inputs (the Wanda family of code counts the pruned ones instead: the same for 2:4
    and 4:8, the opposite for every other pattern).

    Raises ConfigError if one field only is set, or not ``0 < n < m``.
    """

    n: int | None = None
    m: int | None = None

    def __post_init__(self) -> None:
        """Refuse patterns that keep nothing or everything."""
        if self.n is None and self.m is None:
            return
        if self.n is None or self.m is None or not 0 < self.n < self.m:
            raise ConfigError(_message(f"{self.n}:{self.m}"))

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read `unstructured` or `N:M`.

        Raises ConfigError if the text is anything else, or not ``0 < N < M``.
        """
        if text == "unstructured":
            return cls()
        match = _STRUCTURED.fullmatch(text)
        if match is None:
            raise ConfigError(_message(text))
        return cls(int(match[1]), int(match[2]))

    @property
    def structured(self) -> bool:
        """Whether this is an N:M pattern."""
        return self.m is not None

    @property
    def density(self) -> float | None:
        """Share of weights that survive, n / m; ``None`` where the pattern leaves it open."""
        if self.n is None or self.m is None:
            return None
        return self.n / self.m

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.n}:{self.m}" if self.structured else "unstructured"


UNSTRUCTURED = Pattern()


def _message(text: str) -> str:
    return f"`pruner.pattern` must be 'unstructured' or 'N:M' with 0 < N < M, got '{text}'."


GROUPS = ("layer", "row", "column")
"""Comparison groups: the whole matrix, one output, one input."""

Rounding = Literal["floor", "ceil"]


@lru_cache(1024)
def pruned_count(size: int, sparsity: float, rounding: Rounding = "floor") -> int:
    """Return size * sparsity rounded, taking the sparsity as the decimal number that it prints as.

    ``int(100 * 0.29)`` is 28, because 0.29 is stored slightly too small; this returns 29.

    `sparsity`: share to prune. `rounding`: to the whole number below, or to the one above.
    """
    exact = size * Fraction(str(float(sparsity)))
    return math.floor(exact) if rounding == "floor" else math.ceil(exact)
