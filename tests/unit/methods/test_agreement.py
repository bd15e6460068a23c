"""Agreement from the histogram against a count over all pairs of clients."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedprune.methods.agreement import pairwise_agreement, tied_weights, unanimous_share
from fedprune.methods.votes import VoteCounter
from fedprune.wire.masks import BitMask


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


@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=9),
    st.integers(1, 30),
    st.integers(0, 2**31),
)
def test_weighted_pairs(weights, size, seed):
    masks = np.random.default_rng(seed).random((len(weights), 1, size)) < 0.7
    counter = VoteCounter(size)
    for mask, weight in zip(masks, weights, strict=True):
        counter.add(BitMask.from_bool(mask), weight)
    pairs = list(combinations(range(len(weights)), 2))
    product = [weights[i] * weights[j] for i, j in pairs]
    same = [np.mean(masks[i] == masks[j]) for i, j in pairs]
    histogram = counter.histogram()
    found = pairwise_agreement(histogram, counter.effective_clients)
    assert found == pytest.approx(np.average(same, weights=product))
    unanimous = masks.all(axis=0) | ~masks.any(axis=0)
    assert unanimous_share(histogram) == pytest.approx(unanimous.mean())


def test_bins_are_close_to_exact():
    masks = np.random.default_rng(0).random((5, 1, 4000)) < 0.6
    exact, binned = VoteCounter(4000), VoteCounter(4000)
    for mask in masks:
        exact.add(BitMask.from_bool(mask))
        binned.add(BitMask.from_bool(mask), 10**6)
    found = pairwise_agreement(binned.histogram(), binned.effective_clients)
    assert found == pytest.approx(pairwise_agreement(exact.histogram(), 5), abs=1e-3)
    assert unanimous_share(binned.histogram()) == unanimous_share(exact.histogram())


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.data())
def test_ties_are_the_weights_at_the_last_count_that_is_partly_pruned(votes, data):
    pruned = data.draw(st.integers(0, len(votes)))
    order = sorted(votes, reverse=True)
    split = 0 < pruned < len(votes) and order[pruned - 1] == order[pruned]
    tied = votes.count(order[pruned]) if split else 0
    above = sum(number > order[pruned] for number in votes) if split else pruned
    histogram = np.bincount(votes, minlength=7)
    assert tied_weights(histogram, pruned) == (tied, pruned - above)
