"""How useful an expert is, from exact sums over tokens, and what several clients make of that.

With g the weight that the router gives an expert, f its output and N the tokens sent to it, a score
is (Lasby et al., arXiv 2510.13999)

    reap            sum of g |f| / N
    norm            sum of |f| / N
    frequency       N
    router_weight   sum of g

An expert without a token scores 0. Scores are fractions of integers and are compared as such, so
that nothing is rounded that decides which experts go.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedprune.pruning.experts import NORMS, SALIENCY, TOKENS, UNIT_BITS, WEIGHTS

Ranking = Literal["reap", "frequency", "norm", "router_weight"]
RANKINGS: tuple[str, ...] = get_args(Ranking)

_SUMS = {"reap": SALIENCY, "frequency": TOKENS, "norm": NORMS, "router_weight": WEIGHTS}
_MEANS = ("reap", "norm")

SHARE_BITS = 32
"""A client's scores, and its shares of them, are whole numbers of units of 2**-SHARE_BITS."""

Sums = Mapping[str, NDArray[Any]]
"""The arrays of :class:`fedprune.pruning.experts.ExpertSums` of one block."""


def ranked_by(ranking: str) -> str:
    """Return the sum that a ranking is made of, beside the tokens."""
    return _SUMS[ranking]


def expert_scores(sums: Sums, ranking: str) -> list[Fraction]:
    """Return the score of each expert of a block; the larger, the more useful.

    `sums`: exact sums, int64 of shape (experts,) each. `ranking`: `strategy.ranking`.
    """
    values, tokens = sums[_SUMS[ranking]].tolist(), sums[TOKENS].tolist()
    per = tokens if ranking in _MEANS else [1] * len(tokens)
    return [Fraction(value, n) if n else Fraction(0) for value, n in zip(values, per, strict=True)]


def mean_scores(sums: Sums, ranking: str) -> NDArray[np.int64]:
    """Return scores for each token that a client routed, in units of 2**-SHARE_BITS, rounded once.

    What is a sum is divided by the pairs of token and expert of the block, so that a client with
    many tokens scores no higher than one with few.
    """
    pairs = 1 if ranking in _MEANS else int(sums[TOKENS].sum())
    unit = 1 if _SUMS[ranking] == TOKENS else 2**UNIT_BITS
    return _units([score / (max(pairs, 1) * unit) for score in expert_scores(sums, ranking)])


def score_shares(sums: Sums, ranking: str) -> NDArray[np.int64]:
    """Return each score's share of their total, in units of 2**-SHARE_BITS, rounded once."""
    return _shares(expert_scores(sums, ranking))


def need_shares(sums: Sums, ranking: str) -> NDArray[np.int64]:
    """Return the share of what experts do for a client that each does, in units of 2**-SHARE_BITS.

    The sum that a ranking is made of, before it is divided by tokens, is additive over experts: it
    is what is lost with them.
    """
    return _shares([Fraction(value) for value in sums[_SUMS[ranking]].tolist()])


def _shares(values: Sequence[Fraction]) -> NDArray[np.int64]:
    total = sum(values)
    return _units([value / total if total else value for value in values])


def _units(values: Sequence[Fraction]) -> NDArray[np.int64]:
    return np.array([round(value * 2**SHARE_BITS) for value in values], dtype=np.int64)
