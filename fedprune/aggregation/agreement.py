"""How far clients agree, from the histogram of votes alone."""

from math import comb

import numpy as np
from numpy.typing import NDArray


def pairwise_agreement(histogram: NDArray[np.int64], clients: int) -> float:
    """Return the share of weights on which two clients agree, averaged over all pairs of clients.

    A weight with v votes among m clients is agreed on by C(v, 2) + C(m - v, 2) of C(m, 2) pairs.

    Parameters
    ----------
    histogram : NDArray[np.int64]
        Number of weights by votes, shape (clients + 1,).
    clients : int
        Number of clients, m; a single client agrees with itself (1.0).
    """
    if clients < 2:
        return 1.0
    agreeing = sum(
        int(weights) * (comb(votes, 2) + comb(clients - votes, 2))
        for votes, weights in enumerate(histogram)
    )
    return agreeing / (int(histogram.sum()) * comb(clients, 2))


def unanimous_share(histogram: NDArray[np.int64]) -> float:
    """Return the share of weights that all clients keep or all clients prune.

    Parameters
    ----------
    histogram : NDArray[np.int64]
        Number of weights by votes, shape (clients + 1,).
    """
    if histogram.size == 1:
        return 1.0
    return int(histogram[0] + histogram[-1]) / int(histogram.sum())
