"""Selection by votes against a sort of every comparison group, written from the rules."""

from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import ConfigError, ModelError
from fedprune.methods.vote_selection import Rule, select, select_nm
from fedprune.methods.votes import VoteCounter
from fedprune.wire.masks import BitMask

SHAPE = (5, 24)
GROUPS = ("layer", "row", "column")
PATTERNS = [Pattern(2, 4), Pattern(4, 8), Pattern(1, 3), Pattern(5, 6), Pattern(1, 2)]
RULES = [Rule(*rule) for rule in product(GROUPS, ("magnitude", "index", "random"), (False, True))]


def counted(masks, weights=None):
    """Add boolean masks to a new counter."""
    counter = VoteCounter(masks[0].size)
    for mask, weight in zip(masks, weights or [1] * len(masks), strict=True):
        counter.add(BitMask.from_bool(mask), weight)
    return counter


def groups_of(shape, group):
    """Return comparison groups as lists of flat indices, lower index first."""
    places = np.arange(shape[0] * shape[1]).reshape(shape)
    if group == "layer":
        return [places.ravel().tolist()]
    return (places if group == "row" else places.T).tolist()


def first_pruned(votes, magnitude, rule, total, indices, count):
    """Return the `count` indices that the rule prunes first."""

    def key(i):
        if rule.majority_floor and 2 * int(votes[i]) <= total:
            return (1, 0, float(magnitude[i]), i)  # no majority: after all others, by |W|
        return (0, -int(votes[i]), float(magnitude[i]) if rule.ties == "magnitude" else 0.0, i)

    return sorted(indices, key=key)[:count]


def oracle(votes, magnitude, rule, total, groups, counts):
    """Return the flat mask."""
    mask = np.ones(votes.size, dtype=bool)
    for group, count in zip(groups, counts, strict=True):
        mask[first_pruned(votes, magnitude, rule, total, group, count)] = False
    return mask


def pruned(size, sparsity, rounding="floor"):
    """Return size * sparsity rounded, in decimal."""
    exact = size * Fraction(str(sparsity))
    return floor(exact) if rounding == "floor" else ceil(exact)


def case(seed, clients, shape, values):
    """Return masks that nearly agree, and magnitudes of which few differ."""
    rng = np.random.default_rng(seed)
    common = rng.random(shape) < 0.5
    masks = np.array([common ^ (rng.random(shape) < 0.1) for _ in range(clients)])
    return masks.reshape(clients, *shape), rng.integers(0, values, shape).astype(np.float32).ravel()


def votes_of(masks, weights, size):
    """Return votes by their definition."""
    return sum((w * ~m.ravel() for m, w in zip(masks, weights, strict=True)), np.zeros(size, int))


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 40) | st.just(1), max_size=12),
    st.tuples(st.integers(1, 17), st.integers(1, 90)),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.29, 0.5, 0.7, 0.99]),
    st.sampled_from(
        [
            replace(rule, rounding=rounding)
            for rule in RULES
            for rounding in ("floor", "ceil")
            if rule.ties != "random"
        ]
    ),
)
@settings(deadline=None, max_examples=400)
def test_equals_a_sort_of_each_group(seed, weights, shape, values, sparsity, rule):
    masks, magnitude = case(seed, len(weights), shape, values)
    counter = counted(masks, weights) if weights else VoteCounter(magnitude.size)
    votes = votes_of(masks, weights, magnitude.size)
    groups = groups_of(shape, rule.group)
    counts = [pruned(len(group), sparsity, rule.rounding) for group in groups]
    expected = oracle(votes, magnitude, rule, sum(weights), groups, counts)
    found = select(counter, sparsity, magnitude, shape, rule)
    assert found.shape == shape
    assert np.array_equal(found.to_bool().ravel(), expected)


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 40) | st.just(1), min_size=1, max_size=12),
    st.sampled_from(PATTERNS),
    st.integers(1, 9),
    st.sampled_from([rule for rule in RULES if rule.ties != "random"]),
)
@settings(deadline=None)
def test_nm_equals_a_sort_of_each_group(seed, weights, pattern, values, rule):
    masks, magnitude = case(seed, len(weights), SHAPE, values)
    votes = votes_of(masks, weights, 120)
    groups = [range(start, start + pattern.m) for start in range(0, 120, pattern.m)]
    counts = [pattern.m - pattern.n] * len(groups)
    expected = oracle(votes, magnitude, rule, sum(weights), groups, counts)
    found = select_nm(counted(masks, weights), pattern, magnitude, SHAPE, rule)
    assert np.array_equal(found.to_bool().ravel(), expected)


@pytest.mark.parametrize("group", ["row", "column"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_index_is_the_published_rule(group, sparsity):
    masks, magnitude = case(5, 6, (23, 40), 3)
    votes = (~masks).sum(axis=0)
    lines = votes if group == "row" else votes.T
    order = np.argsort(-lines, axis=1, kind="stable")[:, : int(lines.shape[1] * sparsity)]
    expected = np.ones(lines.shape, dtype=bool)
    np.put_along_axis(expected, order, False, axis=1)
    expected = expected if group == "row" else expected.T
    found = select(counted(masks), sparsity, magnitude, (23, 40), Rule(group, "index"))
    assert np.array_equal(found.to_bool(), expected)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_300_clients(rule):
    masks, magnitude = case(1, 300, (8, 40), 50)
    groups = groups_of((8, 40), rule.group)
    found = select(counted(masks), 0.5, magnitude, (8, 40), rule)
    votes = (~masks).sum(axis=0).ravel()
    flat = found.to_bool().ravel()
    for group in groups:
        assert np.count_nonzero(~flat[group]) == len(group) // 2
    if rule.ties != "random":
        counts = [len(group) // 2 for group in groups]
        assert np.array_equal(flat, oracle(votes, magnitude, rule, 300, groups, counts))
    nm = select_nm(counted(masks), Pattern(2, 4), magnitude, (8, 40), rule)
    assert (nm.to_bool().reshape(-1, 4).sum(axis=1) == 2).all()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_order_of_clients_does_not_matter(rule):
    masks, magnitude = case(2, 11, SHAPE, 3)
    weights = [1, 5, 1, 2, 1, 7, 1, 1, 3, 1, 2]
    order = np.random.default_rng(0).permutation(11)
    shuffled = masks[order], [weights[i] for i in order]
    for sparsity in (0.0, 0.3, 0.5, 0.95):
        one = select(counted(masks, weights), sparsity, magnitude, SHAPE, rule)
        assert one == select(counted(*shuffled), sparsity, magnitude, SHAPE, rule)
    one = select_nm(counted(masks, weights), Pattern(2, 4), magnitude, SHAPE, rule)
    assert one == select_nm(counted(*shuffled), Pattern(2, 4), magnitude, SHAPE, rule)


@pytest.mark.parametrize("group", GROUPS)
def test_random_ties(group):
    shape = (16, 128)
    masks, magnitude = case(3, 2, shape, 5)
    rule = Rule(group, "random", seed=7)
    one = select(counted(masks), 0.5, magnitude, shape, rule)
    assert one == select(counted(masks), 0.5, magnitude, shape, rule)
    assert one != select(counted(masks), 0.5, magnitude, shape, Rule(group, "random", seed=8))
    votes = (~masks).sum(axis=0).ravel()
    flat = one.to_bool().ravel()
    for members in groups_of(shape, group):
        threshold = np.sort(votes[members])[::-1][len(members) // 2 - 1]
        assert not flat[members][votes[members] > threshold].any()
        assert flat[members][votes[members] < threshold].all()
        assert np.count_nonzero(~flat[members]) == len(members) // 2


def test_random_ties_are_those_of_the_raw_stream():
    counter = counted(np.zeros((1, 1, 6), dtype=bool))
    keys = np.random.PCG64(11).random_raw(6) >> np.uint64(32)
    expected = np.ones(6, dtype=bool)
    expected[np.argsort(keys, kind="stable")[:3]] = False
    for group in ("layer", "row"):
        rule = Rule(group, "random", seed=11)
        found = select(counter, 0.5, np.ones(6, dtype=np.float32), (1, 6), rule)
        assert found.to_bool().ravel().tolist() == expected.tolist()
    nm = select_nm(counter, Pattern(3, 6), np.ones(6, dtype=np.float32), (1, 6), rule)
    assert nm.to_bool().ravel().tolist() == expected.tolist()


def test_random_ties_favour_nobody():
    counter = counted(np.zeros((1, 4, 5000), dtype=bool))
    found = select(counter, 0.5, np.zeros(20_000, np.float32), (4, 5000), Rule("row", "random"))
    halves = found.to_bool()[:, :2500].sum(axis=1)
    assert (abs(halves - 1250) < 150).all()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(70, 600), (200, 130), (64, 512)], ids=str)
def test_many_ties(group, shape):
    masks, _ = case(6, 2, shape, 2)
    magnitude = np.random.default_rng(6).standard_normal(shape[0] * shape[1]).astype(np.float32)
    votes = (~masks).sum(axis=0).ravel()
    groups = groups_of(shape, group)
    counts = [len(members) * 2 // 5 for members in groups]
    for rule in (Rule(group), Rule(group, majority_floor=True)):
        expected = oracle(votes, np.abs(magnitude), rule, 2, groups, counts)
        found = select(counted(masks), 0.4, np.abs(magnitude), shape, rule)
        assert np.array_equal(found.to_bool().ravel(), expected)


@pytest.mark.parametrize("misleading", [False, True])
@pytest.mark.parametrize("floor", [False, True])
def test_more_ties_than_are_sampled(misleading, floor):
    # Of so many ties every second or third word is a sample, in which large ones are too many here.
    shape, rng = (700, 1024), np.random.default_rng(8)
    masks = rng.random((2, *shape)) < 0.5
    words = np.abs(rng.standard_normal((700 * 16, 64))).astype(np.float32)
    if misleading:
        words[::6] += 100
    magnitude, votes = words.ravel(), (~masks).sum(axis=0).ravel()
    counter = counted(masks)
    order = np.lexsort((magnitude, -np.where(votes == 2, 2, 0) if floor else -votes))
    for sparsity in (0.3, 0.5, 0.8):
        expected = np.ones(votes.size, dtype=bool)
        expected[order[: int(votes.size * sparsity)]] = False
        found = select(counter, sparsity, magnitude, shape, Rule(majority_floor=floor))
        assert np.array_equal(found.to_bool().ravel(), expected)


def test_all_equal_prunes_the_lower_index_first():
    counter = counted(np.zeros((4, *SHAPE), dtype=bool))
    magnitude = np.ones(120, dtype=np.float32)
    layer = select(counter, 0.5, magnitude, SHAPE, Rule())
    assert layer.to_bool().ravel().tolist() == [False] * 60 + [True] * 60
    row = select(counter, 0.5, magnitude, SHAPE, Rule("row"))
    assert row.to_bool().tolist() == [[False] * 12 + [True] * 12] * 5
    column = select(counter, 0.5, magnitude, SHAPE, Rule("column"))
    assert column.to_bool().tolist() == [[False] * 24] * 2 + [[True] * 24] * 3
    nm = select_nm(counter, Pattern(1, 3), magnitude, SHAPE, Rule())
    assert nm.to_bool().ravel().tolist() == [False, False, True] * 40


def test_votes_come_before_magnitude():
    masks = np.ones((3, 1, 4), dtype=bool)
    masks[:, 0, 3] = False  # voted out by all, though it is the largest
    magnitude = np.array([0.0, 1.0, 2.0, 9.0], dtype=np.float32)
    for rule in (Rule(), Rule(majority_floor=True)):
        found = select(counted(masks), 0.25, magnitude, (1, 4), rule)
        assert found.to_bool().tolist() == [[True, True, True, False]]
        nm = select_nm(counted(masks), Pattern(2, 4), magnitude, (1, 4), rule)
        assert nm.to_bool().tolist() == [[False, True, True, False]]


def attacked(colluders, clients=30, shape=(16, 64)):
    """Return votes in which colluders vote out the large weights that all others keep.

    Honest clients keep the larger half, with a few differences about the threshold; colluders vote
    with the majority, but for the targets, which they exchange for weights they keep instead.
    """
    rng = np.random.default_rng(4)
    size = shape[0] * shape[1]
    magnitude = rng.permutation(np.arange(1, size + 1)).astype(np.float32)
    targets = magnitude > size - 20
    honest = []
    for _ in range(clients - colluders):
        score = magnitude * rng.lognormal(0, 0.3, size) + 10 * size * targets
        honest.append(score > np.sort(score)[size // 2 - 1])
    # The least voted of those that most prune take the targets' places.
    order = np.argsort(-(~np.array(honest)).sum(axis=0), kind="stable")
    evil = np.ones(size, dtype=bool)
    evil[order[: size // 2 - 20]] = False
    evil[targets] = False
    masks = [mask.reshape(shape) for mask in [*honest, *[evil] * colluders]]
    assert {int(mask.sum()) for mask in masks} == {size // 2}  # all look valid
    return counted(masks), magnitude, targets, shape


@pytest.mark.parametrize("group", GROUPS)
def test_majority_floor_stops_the_attack_of_a_third(group):
    votes, magnitude, targets, shape = attacked(colluders=14)
    without = select(votes, 0.5, magnitude, shape, Rule(group))
    assert not without.to_bool().ravel()[targets].all()  # weights that every honest client keeps
    rule = Rule(group, majority_floor=True)
    kept = select(votes, 0.5, magnitude, shape, rule).to_bool()
    assert kept.ravel()[targets].all()
    assert targets.reshape(-1, 4).sum(axis=1).max() <= 2
    nm = select_nm(votes, Pattern(2, 4), magnitude, shape, rule)
    assert nm.to_bool().ravel()[targets].all()


def test_few_colluders_push_nothing_out():
    votes, magnitude, targets, shape = attacked(colluders=4)
    assert select(votes, 0.5, magnitude, shape, Rule()).to_bool().ravel()[targets].all()


def test_half_of_the_votes_is_no_majority():
    masks = np.ones((2, 1, 4), dtype=bool)
    masks[0, 0, 3] = masks[1, 0, 2] = masks[0, 0, 2] = False  # votes 0 0 2 1
    magnitude = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)
    floor = select(counted(masks), 0.5, magnitude, (1, 4), Rule(majority_floor=True))
    assert floor.to_bool().tolist() == [[False, True, False, True]]
    plain = select(counted(masks), 0.5, magnitude, (1, 4), Rule())
    assert plain.to_bool().tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("group", GROUPS)
def test_selecting_twice_gives_the_same(group):
    shape = (16, 8)  # tiles of eight by eight: nothing may be changed in place
    masks, magnitude = case(4, 6, shape, 5)
    counter = counted(masks)
    rule = Rule(group, majority_floor=True)
    one = select(counter, 0.5, magnitude, shape, rule)
    assert np.array_equal(counter.counts(0, 128), (~masks).sum(axis=0).ravel())
    assert one == select(counter, 0.5, magnitude, shape, rule)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_out_of_range(sparsity):
    counter = counted(np.zeros((1, *SHAPE), dtype=bool))
    with pytest.raises(ConfigError, match="`sparsity` must be at least 0 and below 1"):
        select(counter, sparsity, np.ones(120, dtype=np.float32), SHAPE, Rule())


@pytest.mark.parametrize(
    ("magnitude", "shape"),
    [(np.ones(119), SHAPE), (np.ones(SHAPE), SHAPE), (np.ones(120), (5, 23))],
)
def test_sizes_that_do_not_fit(magnitude, shape):
    counter = counted(np.zeros((1, *SHAPE), dtype=bool))
    with pytest.raises(ModelError, match="Votes of 120 weights do not fit"):
        select(counter, 0.5, magnitude.astype(np.float32), shape, Rule())
    with pytest.raises(ModelError, match="Votes of 120 weights do not fit"):
        select_nm(counter, Pattern(2, 4), magnitude.astype(np.float32), shape, Rule())


def test_patterns_that_do_not_fit():
    counter = counted(np.zeros((1, *SHAPE), dtype=bool))
    magnitude = np.ones(120, dtype=np.float32)
    with pytest.raises(ModelError, match="'2:5' needs d_in divisible by 5, got 24"):
        select_nm(counter, Pattern(2, 5), magnitude, SHAPE, Rule())
    with pytest.raises(ConfigError, match="`pruner.pattern` must be 'N:M'"):
        select_nm(counter, Pattern(), magnitude, SHAPE, Rule())
