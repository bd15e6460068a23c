"""How useful an expert is, from exact sums over tokens, and which ones of a block remain.

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
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedprune.pruning.experts import NORMS, SALIENCY, TOKENS, UNIT_BITS, WEIGHTS

Groups = Sequence[Sequence[int]]
"""Experts by the group that the router puts them in; of each group the same number goes."""


def grouped(experts: int, groups: int) -> list[range]:
    """Return the experts of each group: consecutive ones, as routers divide them."""
    size = experts // groups
    return [range(start, start + size) for start in range(0, experts, size)]


def drop_lowest(scores: Sequence[Fraction | int], groups: Groups, drop: int) -> list[int]:
    """Return the ``drop`` experts of each group with the lowest scores, ascending.

    Of equal scores the first one goes.
    """
    dropped: list[int] = []
    for group in groups:
        dropped += sorted(group, key=lambda expert: (scores[expert], expert))[:drop]
    return sorted(dropped)


@dataclass(frozen=True)
class WorstClient:
    """Experts chosen so that no client loses more than it must, as far as exchanges can see."""

    dropped: list[int]  # the experts that go, ascending
    # the most that a client loses, as a share of what experts do for it, in units of 2**-SHARE_BITS
    lost: int
    excess: int  # the most that a client loses beyond what it would lose if it alone chose


def drop_fairly(needs: NDArray[np.int64], groups: Groups, drop: int) -> WorstClient:
    """Return which experts to drop so that the client worst off is as well off as possible.

    A client loses the needs of all experts that go. It must lose those of the ``drop`` experts of
    each group that it needs least; what it loses beyond is its excess. Sought are the experts whose
    loss has the smallest largest excess, and among these the smallest sum of excesses.

    To find the best of all choices is a search without end, so exchanges do. The start are the
    experts that all clients together need least. As long as an exchange of one expert that goes for
    one of its group that remains makes the pair (largest excess, sum of excesses) smaller, that is
    done which makes it smallest; of equals the one that brings back the first expert, then that
    which drops the first. The pair falls each time, so this ends.

    `needs`: what each client needs of each expert, shape (clients, experts); not negative. `drop`:
    how many of each group go; fewer than it has.
    """
    must = sum(np.sort(needs[:, list(group)], axis=1)[:, :drop].sum(1) for group in groups)
    gone = np.zeros(needs.shape[1], dtype=bool)
    gone[drop_lowest(needs.sum(0).tolist(), groups, drop)] = True
    excess = needs[:, gone].sum(1) - must
    while True:
        found = min(
            (_best_exchange(needs, np.array(group), gone, excess) for group in groups),
            key=lambda one: one[:2],
        )
        if found[:2] >= (int(excess.max()), int(excess.sum())):
            break
        _, _, out, back = found
        excess += needs[:, out] - needs[:, back]
        gone[out], gone[back] = True, False
    lost = int((excess + must).max())
    return WorstClient(np.flatnonzero(gone).tolist(), lost, int(excess.max()))


def _best_exchange(
    needs: NDArray[np.int64],
    group: NDArray[np.int64],
    gone: NDArray[np.bool_],
    excess: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """Return the pair after a group's best exchange, and which expert goes and which comes back."""
    best = (np.iinfo(np.int64).max, 0, 0, 0)
    stays = group[~gone[group]]
    for back in group[gone[group]].tolist() if len(stays) else []:
        after = (excess - needs[:, back])[:, None] + needs[:, stays]
        worst, total = after.max(0), after.sum(0)
        place = int(np.lexsort((total, worst))[0])
        found = (int(worst[place]), int(total[place]), int(stays[place]), back)
        if found[:2] < best[:2]:
            best = found
    return best


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

    What is a sum is divided by the block's pairs of token and expert, however many a client has.
    """
    pairs = 1 if ranking in _MEANS else int(sums[TOKENS].sum())
    unit = 1 if _SUMS[ranking] == TOKENS else 2**UNIT_BITS
    return _units([score / (max(pairs, 1) * unit) for score in expert_scores(sums, ranking)])


def score_shares(sums: Sums, ranking: str) -> NDArray[np.int64]:
    """Return each score's share of their total, in units of 2**-SHARE_BITS, rounded once."""
    return _shares(expert_scores(sums, ranking))


def need_shares(sums: Sums, ranking: str) -> NDArray[np.int64]:
    """Return the share of what experts do for a client that each does, in units of 2**-SHARE_BITS.

    The sum that a ranking is made of, before it is divided by tokens, is what is lost with them.
    """
    return _shares([Fraction(value) for value in sums[_SUMS[ranking]].tolist()])


def _shares(values: Sequence[Fraction]) -> NDArray[np.int64]:
    total = sum(values)
    return _units([value / total if total else value for value in values])


def _units(values: Sequence[Fraction]) -> NDArray[np.int64]:
    return np.array([round(value * 2**SHARE_BITS) for value in values], dtype=np.int64)
