"""Which experts of a block remain."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

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
