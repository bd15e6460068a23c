"""Bags of words from sums: exact where there are enough equations, and never below zero."""

from itertools import combinations

import numpy as np
import pytest

from fedprune.privacy.words import nonnegative_least_squares, projections, recovered_counts, score


def slow(rows, wanted):
    """Try every set of unknowns and keep the best whose solution is not negative."""
    best, least = np.zeros(len(rows)), float(wanted @ wanted)
    for size in range(1, len(rows) + 1):
        for chosen in combinations(range(len(rows)), size):
            values = np.linalg.lstsq(rows[list(chosen)].T, wanted, rcond=None)[0]
            missed = wanted - rows[list(chosen)].T @ values
            if (values >= 0).all() and missed @ missed < least - 1e-12:
                best, least = np.zeros(len(rows)), float(missed @ missed)
                best[list(chosen)] = values
    return best


@pytest.mark.parametrize("seed", range(30))
def test_least_squares_equal_trying_every_set(seed):
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((6, 7)) + 0.3
    wanted = draw.standard_normal(7)
    assert nonnegative_least_squares(rows, wanted) == pytest.approx(slow(rows, wanted), abs=1e-8)


def test_nothing_to_find_is_zero():
    rows = np.abs(np.random.default_rng(0).standard_normal((5, 4)))
    assert not nonnegative_least_squares(rows, -np.ones(4)).any()
    assert not recovered_counts(rows, np.zeros(4), 10).any()


@pytest.fixture(scope="module")
def vectors():
    """Token vectors as a norm leaves them: all of one length."""
    found = np.random.default_rng(1).standard_normal((400, 48))
    return found / np.linalg.norm(found, axis=1, keepdims=True) * np.sqrt(48)


def counts_of(distinct, size=400, seed=2):
    draw, counts = np.random.default_rng(seed), np.zeros(size, dtype=np.int64)
    counts[draw.choice(size, distinct, replace=False)] = draw.integers(1, 9, distinct)
    return counts


@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_few_tokens_are_found_exactly_whatever_the_scale(vectors, factor):
    counts = counts_of(10)
    public = np.square(vectors)
    found = recovered_counts(public, factor * (counts @ public), int(counts.sum()))
    assert np.array_equal(np.rint(found), counts)


def test_moments_tell_more_than_their_diagonal(vectors):
    counts = counts_of(60)
    moments = (vectors * counts[:, None]).T @ vectors
    whole = recovered_counts(*projections(vectors, moments, 800, 3), int(counts.sum()))
    assert np.array_equal(np.rint(whole), counts)
    diagonal = recovered_counts(np.square(vectors), np.diag(moments), int(counts.sum()))
    others = counts_of(60, seed=9)
    assert score(whole, counts, others).recall == 1 > score(diagonal, counts, others).recall


def test_projections_are_quadratic_forms(vectors):
    moments = vectors.T @ vectors
    public, observed = projections(vectors, moments, 5, 7)
    directions = np.random.default_rng(7).standard_normal((48, 5))
    for place, r in enumerate(directions.T):
        assert observed[place] == pytest.approx(r @ moments @ r)
        assert observed[place] == pytest.approx(sum((r @ x) ** 2 for x in vectors))
        assert public[3, place] == pytest.approx((r @ vectors[3]) ** 2)


def test_scores_against_hand_counts():
    found = np.array([2.0, 0.6, 0.4, 0.0, 3.0])
    true = np.array([2, 0, 1, 0, 1])
    others = np.array([1, 9, 0, 8, 7])
    told = score(found, true, others)  # names 0, 1, 4; would guess 1, 3, 4
    assert (told.precision, told.recall, told.distinct) == pytest.approx((2 / 3, 2 / 3, 3))
    assert (told.guess_precision, told.guess_recall) == pytest.approx((1 / 3, 1 / 3))
    nobody = score(np.zeros(5), true, others)
    assert (nobody.precision, nobody.recall) == (0, 0)
