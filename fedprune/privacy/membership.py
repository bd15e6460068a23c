"""Whether a document that somebody knows was among those that a sum was made of.

The attacker has the public model, so the document's own statistics, and other texts of the kind,
so what statistics usually are. Of sums that are nearly normal the best test is the likelihood
ratio; that of Homer et al. (PLoS Genetics 2008) for sums of allele counts is the same test.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_RESAMPLED = 1000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Separation:
    """How well members are told from others."""

    # chance that a member scores higher than another: 0.5 says nothing, 1 tells all apart
    auc: float
    # low, high: its interval of 95 %, by resampling members and others
    low: float
    high: float


def likelihood_ratios(
    released: Floats, documents: Floats, background: Floats, members: int
) -> NDArray[np.float64]:
    """Return for each document how much likelier what was released is if it took part.

    `released`: mean statistic of those who took part, as far as it is known, shape (numbers,).
    `documents`: statistics of the documents in question, shape (documents, numbers). `background`:
    statistics of other documents, at least two, shape (others, numbers). Returns logarithms, up to
    a common factor, shape (documents,).
    """
    usual, spread = background.mean(0), background.std(0, ddof=1)
    known = spread > 1e-9 * np.maximum(np.abs(usual), 1e-30)
    seen = (released[known] - usual[known]) / spread[known]
    own = (documents[:, known] - usual[known]) / spread[known]
    # A member moves the mean by own / members, where it scatters by 1 / sqrt(members).
    ratios: NDArray[np.float64] = own @ seen - np.square(own).sum(1) / (2 * members)
    return ratios


def separation(members: Floats, others: Floats, seed: int = 0) -> Separation:
    """Return how well two sets of scores are separated.

    `members`, `others`: scores of those who took part and of those who did not.
    """
    generator = np.random.default_rng(seed)
    drawn = [
        area(generator.choice(members, len(members)), generator.choice(others, len(others)))
        for _ in range(_RESAMPLED)
    ]
    low, high = np.percentile(drawn, _INTERVAL)
    return Separation(area(members, others), float(low), float(high))


def area(members: Floats, others: Floats) -> float:
    """Return the area under the curve: the share of pairs in which the member scores higher.

    A pair of equal scores counts half.
    """
    ranked = np.sort(others)
    below = np.searchsorted(ranked, members, side="left")
    through = np.searchsorted(ranked, members, side="right")
    return float((below + through).sum() / (2 * len(members) * len(others)))
