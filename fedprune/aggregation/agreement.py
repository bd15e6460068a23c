"""How far clients agree and where votes are tied, from the histogram of votes alone."""

import numpy as np
from numpy.typing import NDArray


def pairwise_agreement(histogram: NDArray[np.int64], clients: float) -> float:
    """Return the share of weights on which two clients agree, averaged over all pairs of clients.

    A weight with v votes among m clients is agreed on by C(v, 2) + C(m - v, 2) of C(m, 2) pairs.
    Where clients count for several votes, so do their pairs: a pair weighs the product of both.
    With x the share of votes and n the effective number of clients, both cases are
    (x^2 + (1 - x)^2 - 1/n) / (1 - 1/n).

    Parameters
    ----------
    histogram : NDArray[np.int64]
        Number of weights by votes, evenly spaced from none to all, shape (total + 1,) or fewer
        where votes were gathered in bins.
    clients : float
        Number of clients, or `VoteCounter.effective_clients` where they are weighted; a single
        client agrees with itself (1.0).
    """
    if clients <= 1:
        return 1.0
    share = np.linspace(0.0, 1.0, histogram.size)
    same = (share**2 + (1.0 - share) ** 2 - 1.0 / clients) / (1.0 - 1.0 / clients)
    mean = float(same @ histogram) / int(histogram.sum())
    return min(max(mean, 0.0), 1.0)  # bins and rounding must not leave the range


def unanimous_share(histogram: NDArray[np.int64]) -> float:
    """Return the share of weights that all clients keep or all clients prune.

    Parameters
    ----------
    histogram : NDArray[np.int64]
        Number of weights by votes, shape (total + 1,) or in bins; client weights do not matter.
    """
    if histogram.size == 1:
        return 1.0
    return int(histogram[0] + histogram[-1]) / int(histogram.sum())


def tied_weights(histogram: NDArray[np.int64], pruned: int) -> tuple[int, int]:
    """Return how many weights share the vote count that decides, and how many of them are pruned.

    The most voted weights are pruned. Those at the last vote count that is reached are tied if not
    all of them are pruned: magnitude, index or chance has chosen among them. Without a tie both
    are 0.

    Parameters
    ----------
    histogram : NDArray[np.int64]
        Number of weights by votes of one comparison group, the whole matrix; where votes were
        gathered in bins, the weights of the deciding bin are counted.
    pruned : int
        Weights of the group that were pruned.
    """
    if not pruned:
        return 0, 0
    falling = histogram[::-1]
    reached = np.cumsum(falling)
    place = int(np.searchsorted(reached, pruned))
    tied, beyond = int(falling[place]), int(reached[place]) - pruned
    return (tied, tied - beyond) if beyond else (0, 0)
