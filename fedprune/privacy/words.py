"""The bag of words of a calibration set, from what is known of the first block's inputs.

What enters the first block's attention is the normalised embedding of each token, and the model is
public. So a sum over tokens of any function of that vector is a sum over the vocabulary of public
numbers, each as often as its token occurs: counts that are never negative, in as many equations as
there are numbers. They are found by non-negative least squares (Lawson and Hanson, Solving Least
Squares Problems, 1974, chapter 23).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_LEAST = 0.5  # occurrences from which on a token counts as found


@dataclass(frozen=True)
class Recovered:
    """How much of a bag of words an attacker got right."""

    precision: float  # share of the tokens it names that occur
    recall: float  # share of the tokens that occur which it names
    # guess_precision, guess_recall: the same of an attacker who names as many tokens, the most
    # frequent of other texts of the kind, without having seen anything
    guess_precision: float
    guess_recall: float
    distinct: int


def recovered_counts(public: Floats, observed: Floats, tokens: int) -> NDArray[np.float64]:
    """Return how often each token occurs, as far as the sums tell.

    `public`: what one occurrence of each token adds, shape (vocabulary, numbers). `observed`: the
    sums, shape (numbers,), up to a common factor, which need not be known. Returns counts that add
    up to ``tokens``, shape (vocabulary,).
    """
    # Errors of sums are relative to the sums: every equation counts alike.
    scale = np.maximum(np.abs(observed), 1e-12 * np.abs(observed).max(initial=0) + 1e-300)
    found = nonnegative_least_squares((public / scale).astype(np.float64), observed / scale)
    total = found.sum()
    return found * (tokens / total) if total > 0 else found


def nonnegative_least_squares(
    rows: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return x >= 0 that minimises ||rows^T x - wanted||, by Lawson and Hanson's active sets.

    `rows`: shape (unknowns, equations). `wanted`: shape (equations,).
    """
    from scipy.optimize import nnls  # half a second, which nobody else need wait

    found, _ = nnls(rows.T, wanted, maxiter=30 * len(rows))
    return np.asarray(found, dtype=np.float64)


def projections(
    vectors: Floats, moments: Floats, count: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what second moments say as sums of one kind: equations for :func:`recovered_counts`.

    A direction r gives r^T G r, the sum over tokens of (r . x)**2; so many random directions say
    what the whole matrix says.

    `vectors`: each token's input vector, shape (vocabulary, d_in). `moments`: G = sum x x^T, shape
    (d_in, d_in). Returns ``public`` of shape (vocabulary, count) and ``observed`` of shape
    (count,).
    """
    directions = np.random.default_rng(seed).standard_normal((moments.shape[0], count))
    observed = np.einsum("ik,ij,jk->k", directions, moments, directions, optimize=True)
    return np.square(vectors @ directions), observed


def score(
    found: NDArray[np.float64], true: NDArray[np.int64], others: NDArray[np.int64]
) -> Recovered:
    """Return how right an attacker is by counts: found, true, and in texts anybody has."""
    named, occurs = found >= _LEAST, true > 0
    most = np.argsort(-others, kind="stable")[: int(named.sum())]
    guessed = np.zeros_like(named)
    guessed[most] = True
    return Recovered(*_right(named, occurs), *_right(guessed, occurs), distinct=int(occurs.sum()))


def _right(named: NDArray[np.bool_], occurs: NDArray[np.bool_]) -> tuple[float, float]:
    both = int((named & occurs).sum())
    return both / max(1, int(named.sum())), both / max(1, int(occurs.sum()))
