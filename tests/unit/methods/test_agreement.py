"""Agreement from the histogram against all pairs of clients, and sampled against whole masks."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.methods.agreement import (
    MaskSampler,
    agreement_matrix,
    agreement_with_result,
    extremes,
    pairwise_agreement,
    tied_weights,
    unanimous_share,
)
from fedprune.methods.votes import VoteCounter
from fedprune.wire.masks import BitMask


@pytest.mark.parametrize("histogram", [[8], [5, 3]], ids=["nobody", "one client"])
def test_fewer_than_two_agree(histogram):
    assert pairwise_agreement(np.array(histogram), len(histogram) - 1) == 1.0
    assert unanimous_share(np.array(histogram)) == 1.0


def test_large_counts_stay_exact():
    histogram = np.zeros(100_001, dtype=np.int64)
    histogram[[0, 50_000]] = 10**11
    assert pairwise_agreement(histogram, 100_000) == pytest.approx(0.75, abs=1e-5)


@given(
    st.lists(st.integers(1, 60) | st.just(1), min_size=2, max_size=9),
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
    # Under a majority floor all that at most three of six are for has one count.
    floored = np.bincount([max(number, 3) - 3 for number in votes], minlength=4)
    assert tied_weights(histogram, pruned, majority=True) == tied_weights(floored, pruned)


SHAPES = {"q": (5, 7), "up": (9, 11), "down": (3, 13)}
WEIGHTS = sum(rows * columns for rows, columns in SHAPES.values())


def masks(seed, keep=0.5):
    rng = np.random.default_rng(seed)
    return {name: rng.random(shape) < keep for name, shape in SHAPES.items()}


def packed(found):
    return {name: BitMask.from_bool(mask) for name, mask in found.items()}


def flat(found):
    return np.concatenate([mask.reshape(-1) for mask in found.values()])


def sampled(clients, result, most=WEIGHTS, seed=0):
    sampler = MaskSampler(SHAPES, most, seed)
    for name, found in clients.items():
        sampler.add(name, packed(found))
    return sampler.close(packed(result))


def test_a_sample_of_all_weights_is_the_exact_share():
    clients, result = {"a": masks(1), "b": masks(2, 0.3), "c": masks(3, 0.9)}, masks(4)
    sample = sampled(clients, result)
    assert sample.weights == WEIGHTS
    found = agreement_with_result([sample])
    matrix = agreement_matrix([sample], ["c", "a", "b"])
    for row, one in enumerate("cab"):
        assert found[one] == pytest.approx(np.mean(flat(clients[one]) == flat(result)))
        for column, other in enumerate("cab"):
            expected = np.mean(flat(clients[one]) == flat(clients[other]))
            assert matrix[row][column] == pytest.approx(expected)


def test_places_are_spread_over_all_linears_and_the_same_for_all_masks():
    result = masks(0)
    for place in range(4):
        flipped = {name: mask ^ (at == place) for at, (name, mask) in enumerate(result.items())}
        sample = sampled({"same": result, "other": flipped}, result, most=80, seed=place)
        assert sample.weights == 80
        found = agreement_with_result([sample])
        assert found["same"] == 1.0
        share = 0 if place == 3 else list(SHAPES.values())[place]
        expected = 1 - np.prod(share) / WEIGHTS if share else 1.0
        assert found["other"] == pytest.approx(expected, abs=0.15)
        assert (found["other"] < 1.0) == (place < 3)


def test_the_seed_alone_decides_the_places():
    clients, result = {"a": masks(1)}, masks(2)
    first, again, other = (sampled(clients, result, 40, seed) for seed in (5, 5, 6))
    assert np.array_equal(first.clients["a"], again.clients["a"])
    assert not np.array_equal(first.clients["a"], other.clients["a"])


def test_only_blocks_that_both_pruned_count():
    a, b, c = masks(1), masks(2), masks(3)
    first = sampled({"a": a, "b": b}, a)
    second = sampled({"b": a, "c": c}, b)
    samples = [first, second]
    matrix = agreement_matrix(samples, ["a", "b", "c"])
    assert matrix[0][1] == matrix[1][0] == pytest.approx(np.mean(flat(a) == flat(b)))
    assert matrix[0][2] is None
    found = agreement_with_result(samples)
    assert found["a"] == 1.0
    assert found["b"] == pytest.approx(np.mean(flat(a) == flat(b)))


def test_extremes_are_the_least_and_the_most_agreeing_in_order():
    agreement = {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.8, "e": 0.1, "f": 0.6}
    assert extremes(agreement, 4) == ["a", "b", "d", "e"]
    assert extremes(agreement, 3) == ["a", "d", "e"]
    assert extremes(agreement, 6) == list("abcdef")
