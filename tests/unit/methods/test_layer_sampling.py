"""Layer sampling: coverage, probabilities, weights that undo unequal ones, means of many draws."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import ConfigError
from fedprune.methods.fedspallm.sampling import (
    draw_layers,
    inverse_weights,
    layer_counts,
    resource_fractions,
    uncovered_probability,
)
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask
from tests.support.sparse import added


def everything(clients, num_blocks):
    return [range(num_blocks)] * clients


def coverage_of(drawn, num_blocks):
    return np.bincount([block for blocks in drawn for block in blocks], minlength=num_blocks)


@st.composite
def fleets(draw):
    num_blocks = draw(st.integers(1, 12))
    counts = draw(st.lists(st.integers(1, num_blocks), min_size=1, max_size=8))
    return num_blocks, counts


@given(fleets(), st.integers(0, 2**40))
@settings(deadline=None)
def test_stratified_draws_cover_evenly(fleet, seed):
    num_blocks, counts = fleet
    coverage = sum(counts) // num_blocks
    if not coverage:
        with pytest.raises(ConfigError, match="too few for `strategy.coverage` 1"):
            draw_layers(
                everything(len(counts), num_blocks), counts, num_blocks, 1, seed, "stratified"
            )
        return
    drawn = draw_layers(
        everything(len(counts), num_blocks), counts, num_blocks, coverage, seed, "stratified"
    )
    assert [len(set(blocks)) for blocks in drawn] == counts
    assert all(list(blocks) == sorted(blocks) for blocks in drawn)
    covered = coverage_of(drawn, num_blocks)
    assert set(covered.tolist()) <= {coverage, -(-sum(counts) // num_blocks)}


def possible(eligible, sizes, num_blocks, coverage):
    """Whether any draw covers: for every set of blocks, clients can take enough of it (Hall)."""
    for size in range(1, num_blocks + 1):
        for blocks in combinations(range(num_blocks), size):
            room = sum(
                min(k, len(set(blocks) & set(may))) for k, may in zip(sizes, eligible, strict=True)
            )
            if room < coverage * size:
                return False
    return True


@st.composite
def limited(draw):
    num_blocks = draw(st.integers(1, 6))
    blocks = st.sets(st.integers(0, num_blocks - 1), min_size=num_blocks // 2)
    eligible = draw(st.lists(blocks, min_size=1, max_size=6))
    counts = [draw(st.integers(1, num_blocks)) for _ in eligible]
    return num_blocks, eligible, counts


@given(limited(), st.integers(1, 3), st.integers(0, 2**40))
@settings(deadline=None, max_examples=400)
def test_limited_clients_cover_whenever_it_is_possible(fleet, coverage, seed):
    num_blocks, eligible, counts = fleet
    sizes = [min(k, len(may)) for k, may in zip(counts, eligible, strict=True)]
    if not possible(eligible, sizes, num_blocks, coverage):
        with pytest.raises(ConfigError, match="`strategy.coverage`"):
            draw_layers(eligible, counts, num_blocks, coverage, seed, "stratified")
        return
    drawn = draw_layers(eligible, counts, num_blocks, coverage, seed, "stratified")
    assert [len(set(blocks)) for blocks in drawn] == sizes
    assert all(set(blocks) <= may for blocks, may in zip(drawn, eligible, strict=True))
    assert coverage_of(drawn, num_blocks).min() >= coverage


@pytest.mark.parametrize("how", ["stratified", "independent"])
@pytest.mark.parametrize("counts", [[2, 2, 2, 2], [1, 2, 3, 5, 8]])
def test_every_block_is_as_likely(how, counts):
    draws, num_blocks = 4000, 8
    found = np.zeros((len(counts), num_blocks))
    for seed in range(draws):
        drawn = draw_layers(everything(len(counts), num_blocks), counts, num_blocks, 1, seed, how)
        for client, blocks in enumerate(drawn):
            found[client, list(blocks)] += 1
    share = np.array(counts)[:, np.newaxis] / num_blocks
    error = np.sqrt(share * (1 - share) / draws)
    assert (abs(found / draws - share) <= 4 * error).all()


def test_independent_draws_leave_blocks_uncovered_as_often_as_said():
    counts, num_blocks, draws = [1, 2, 3], 6, 4000
    empty = 0
    for seed in range(draws):
        drawn = draw_layers(everything(3, num_blocks), counts, num_blocks, 1, seed, "independent")
        empty += 0 not in {block for blocks in drawn for block in blocks}
    expected = uncovered_probability(counts, num_blocks)
    assert expected == pytest.approx(5 / 6 * 4 / 6 * 3 / 6)
    assert uncovered_probability([1, 6], 6) == 0
    assert abs(empty / draws - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)


def test_draws_depend_on_the_seed_alone():
    arguments = everything(4, 12), [3, 6, 6, 9], 12, 2
    one = draw_layers(*arguments, 5, "stratified")
    assert one == draw_layers(*arguments, 5, "stratified")
    assert one != draw_layers(*arguments, 6, "stratified")


@pytest.mark.parametrize("how", ["stratified", "independent"])
def test_a_block_that_nobody_can_prune(how):
    with pytest.raises(
        ConfigError, match=r"`strategy.coverage` 1 .* but blocks 2, 3 only have 0, 0"
    ):
        draw_layers([{0, 1}, {1}], [1, 1], 4, 1, 0, how)
    with pytest.raises(ConfigError, match=r"`strategy.coverage` 2 .* but block 0 only has 1"):
        draw_layers([{0, 1}, {1}], [2, 1], 2, 2, 0, how)


def test_too_little_room_names_the_way_out():
    with pytest.raises(ConfigError, match=r"2 clients prune 6 blocks in all, .* 2 of 4 blocks, 8"):
        draw_layers(everything(2, 4), [3, 3], 4, 2, 0, "stratified")
    message = r"1 of blocks 0, 1 needs 2 .* take only 1\. Raise `strategy.layer_fraction` or a node"
    with pytest.raises(ConfigError, match=message):
        draw_layers([range(4), {2, 3}, {2, 3}], [1, 2, 2], 4, 1, 0, "stratified")


def test_layer_counts_round_halves_up_and_leave_one():
    fractions = [1.0, 0.5, 0.25, 0.125, 0.1, 0.01, 0.35]
    assert layer_counts(fractions, 12) == [12, 6, 3, 2, 1, 1, 4]
    assert layer_counts([0.145], 100) == [15]  # 14.5, though 0.145 * 100 is less in binary


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=10), st.floats(0.01, 1.0) | st.just(1.0))
def test_resource_fractions(speeds, mean):
    shares = np.array(resource_fractions(speeds, mean))
    assert shares.mean() == pytest.approx(mean)
    assert (shares > 0).all() and (shares <= 1).all()
    scale = shares / np.array(speeds)
    free = shares < 1 - 1e-9
    if free.any():  # the same share a speed, and no smaller one where it was cut
        assert scale[free] == pytest.approx(scale[free].max())
        assert (scale[~free] <= scale[free].max() * (1 + 1e-9)).all()


def test_known_resource_fractions():
    assert resource_fractions([1, 1, 2], 0.5) == pytest.approx([0.375, 0.375, 0.75])
    assert resource_fractions([1, 1, 10], 0.5) == pytest.approx([0.25, 0.25, 1])
    assert resource_fractions([], 0.5) == []


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
@settings(deadline=None)
def test_inverse_weights_are_proportional(counts):
    weights = inverse_weights(counts)
    assert 1 <= min(weights) and max(weights) < 2**20
    for weight, count in zip(weights, counts, strict=True):
        exact = Fraction(max(weights) * min(counts), count)
        assert abs(weight - exact) < exact / 1000


def test_inverse_weights_are_small():
    assert inverse_weights([3, 3, 3]) == [1, 1, 1]
    assert inverse_weights([12, 6, 3]) == [1, 2, 4]
    assert inverse_weights([2, 3, 6]) == [3, 2, 1]
    assert inverse_weights([]) == []
    with pytest.raises(ConfigError, match="`strategy.layer_weights=inverse` needs"):
        inverse_weights([1, 3000])


WEIGHTS = 16
BLOCKS = 8
DRAWS = 1500


def clients(counts, survivors, seed=0):
    """Return fixed local results of one block; a client that prunes more blocks differs more."""
    rng = np.random.default_rng(seed)
    base = torch.ones(1, WEIGHTS)
    changes = []
    for count in counts:
        mask = rng.random((1, WEIGHTS)) < survivors
        weight = 1 + 0.1 * count + 0.2 * rng.standard_normal((1, WEIGHTS))
        dense = torch.from_numpy(weight).float()
        changes.append(SparseWeight.from_dense(dense, BitMask.from_bool(mask)))
    return base, changes


def sampled(counts, base, changes, weights, how):
    """Yield for each draw the sums of the clients that drew block 0."""
    everything = [range(BLOCKS)] * len(counts)
    for seed in range(DRAWS):
        drawn = draw_layers(everything, counts, BLOCKS, 1, seed, how)
        chosen = [i for i, blocks in enumerate(drawn) if 0 in blocks]
        if chosen:
            yield added(base, [changes[i] for i in chosen], [weights[i] for i in chosen])


def standard_errors(draws, expected):
    """Return by how many standard errors the mean over draws (NaN: no value) is off."""
    found = np.array(draws)
    count = np.count_nonzero(~np.isnan(found), axis=0)
    assert count.min() > DRAWS / 4
    error = np.nanstd(found, axis=0, ddof=1) / np.sqrt(count)
    return abs(np.nanmean(found, axis=0) - expected) / error


@pytest.mark.parametrize("how", ["stratified", "independent"])
@pytest.mark.parametrize("count", [2, 3])
def test_equal_probabilities_are_unbiased(how, count):
    counts = [count] * 6
    base, changes = clients(counts, survivors=0.7)
    whole = added(base, changes, [1] * 6).mean("l0").numpy().ravel()
    draws = []
    for sums in sampled(counts, base, changes, [1] * 6, how):
        kept = sums.votes.counts(0, WEIGHTS) < sums.votes.total
        # Where nobody who reported kept a weight there is no mean to speak of.
        draws.append(np.where(kept, sums.mean("l0").numpy().ravel(), np.nan))
    assert standard_errors(draws, whole).max() < 3


def test_inverse_weights_undo_unequal_probabilities():
    counts = [1, 1, 2, 2, 4, 4, 8, 8]
    base, changes = clients(counts, survivors=1.0)
    whole = added(base, changes, [1] * 8).mean("l0").numpy().ravel()
    weights = inverse_weights(counts)
    # The expected total weight of those that report: each client's weight times k_i / L.
    expected = sum(w * k for w, k in zip(weights, counts, strict=True)) / BLOCKS
    equal = [
        sums.mean("l0").numpy().ravel()
        for sums in sampled(counts, base, changes, [1] * 8, "stratified")
    ]
    inverse, totals = [], []
    for sums in sampled(counts, base, changes, weights, "stratified"):
        inverse.append(sums.mean("l0").numpy().ravel())
        totals.append(sums.votes.total)
    # Horvitz and Thompson divide by the expected total: unbiased.
    thompson = np.array(inverse) * np.array(totals)[:, np.newaxis] / expected
    assert standard_errors(thompson, whole).max() < 3
    # Equal weights lean towards the clients that prune most.
    assert standard_errors(equal, whole).min() > 10
    # Dividing by the actual total, as a mean must, leaves part of the bias with so few clients.
    left = abs(np.mean(inverse, axis=0) - whole) / abs(np.mean(equal, axis=0) - whole)
    assert left.max() < 0.5 and left.mean() < 0.25
