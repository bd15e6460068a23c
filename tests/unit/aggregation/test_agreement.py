"""Agreement from the histogram against a count over all pairs of clients."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedprune.aggregation.agreement import pairwise_agreement, unanimous_share


@given(st.tuples(st.integers(2, 9), st.integers(1, 30)).flatmap(lambda s: arrays(np.bool_, s)))
def test_equals_the_count_over_pairs(masks):
    clients, weights = masks.shape
    histogram = np.bincount((~masks).sum(axis=0), minlength=clients + 1)
    pairs = [np.mean(one == other) for one, other in combinations(masks, 2)]
    assert pairwise_agreement(histogram, clients) == pytest.approx(np.mean(pairs))
    same = [len(set(column)) == 1 for column in masks.T.tolist()]
    assert unanimous_share(histogram) == pytest.approx(sum(same) / weights)


def test_one_client_agrees_with_itself():
    assert pairwise_agreement(np.array([5, 3]), 1) == 1.0
    assert unanimous_share(np.array([5, 3])) == 1.0


def test_without_clients():
    assert pairwise_agreement(np.array([8]), 0) == 1.0
    assert unanimous_share(np.array([8])) == 1.0


def test_large_counts_stay_exact():
    histogram = np.zeros(100_001, dtype=np.int64)
    histogram[[0, 50_000]] = 10**11
    assert pairwise_agreement(histogram, 100_000) == pytest.approx(0.75, abs=1e-5)
