"""Selection by votes against a sort by (votes, magnitude, index)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.aggregation import select as module
from fedprune.aggregation.select import select_layer, select_nm
from fedprune.aggregation.votes import VoteCounter
from fedprune.config.pattern import Pattern
from fedprune.errors import ConfigError, ModelError
from fedprune.wire.bitmask import BitMask

SHAPE = (5, 24)


def counted(masks):
    """Add boolean masks to a new counter."""
    counter = VoteCounter(masks[0].size)
    for mask in masks:
        counter.add(BitMask.from_bool(mask))
    return counter


def first_pruned(votes, magnitude, indices, count):
    """Return the `count` indices to prune: most votes, then smaller |W|, then lower index."""
    return sorted(indices, key=lambda i: (-int(votes[i]), float(magnitude[i]), i))[:count]


def case(seed, clients, shape, values):
    """Return masks that nearly agree, and magnitudes of which few differ."""
    rng = np.random.default_rng(seed)
    common = rng.random(shape) < 0.5
    masks = np.array([common ^ (rng.random(shape) < 0.1) for _ in range(clients)])
    return masks, rng.integers(0, values, masks[0].size).astype(np.float32)


@given(
    st.integers(0, 2**31),
    st.integers(0, 12),
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    st.integers(1, 9),
    st.floats(0, 1),
)
@settings(deadline=None, max_examples=300)
def test_layer_equals_a_sort(seed, clients, shape, values, share):
    size = shape[0] * shape[1]
    masks, magnitude = case(seed, max(clients, 1), shape, values)
    masks = masks[:clients]
    counter = counted(masks) if clients else VoteCounter(size)
    prune = round(share * size)
    expected = np.ones(size, dtype=bool)
    votes = counter.counts(0, size)
    expected[first_pruned(votes, magnitude, range(size), prune)] = False
    found = select_layer(counter, prune, magnitude, shape)
    assert np.array_equal(found.to_bool().ravel(), expected)
    assert found.shape == shape
    assert found.survivors == size - prune


@given(
    st.integers(0, 2**31),
    st.integers(1, 12),
    st.sampled_from([Pattern(2, 4), Pattern(4, 8), Pattern(1, 3), Pattern(5, 6), Pattern(1, 2)]),
    st.integers(1, 9),
)
@settings(deadline=None)
def test_nm_equals_a_sort_of_each_group(seed, clients, pattern, values):
    masks, magnitude = case(seed, clients, SHAPE, values)
    counter = counted(masks)
    votes = counter.counts(0, 120)
    expected = np.ones(120, dtype=bool)
    for start in range(0, 120, pattern.m):
        group = range(start, start + pattern.m)
        expected[first_pruned(votes, magnitude, group, pattern.m - pattern.n)] = False
    found = select_nm(counter, pattern, magnitude, SHAPE)
    assert np.array_equal(found.to_bool().ravel(), expected)


def test_300_clients():
    masks, magnitude = case(1, 300, SHAPE, 50)
    counter = counted(masks)
    votes = (~masks).sum(axis=0).ravel()
    expected = np.ones(120, dtype=bool)
    expected[first_pruned(votes, magnitude, range(120), 60)] = False
    assert np.array_equal(select_layer(counter, 60, magnitude, SHAPE).to_bool().ravel(), expected)


def test_order_of_clients_does_not_matter():
    masks, magnitude = case(2, 11, SHAPE, 3)
    order = np.random.default_rng(0).permutation(11)
    for prune in (0, 31, 60, 119, 120):
        one = select_layer(counted(masks), prune, magnitude, SHAPE)
        assert one == select_layer(counted(masks[order]), prune, magnitude, SHAPE)
    one = select_nm(counted(masks), Pattern(2, 4), magnitude, SHAPE)
    assert one == select_nm(counted(masks[order]), Pattern(2, 4), magnitude, SHAPE)


def test_all_equal_prunes_the_lower_index_first():
    counter = counted(np.zeros((4, *SHAPE), dtype=bool))
    magnitude = np.ones(120, dtype=np.float32)
    layer = select_layer(counter, 50, magnitude, SHAPE)
    assert layer.to_bool().ravel().tolist() == [False] * 50 + [True] * 70
    nm = select_nm(counter, Pattern(1, 3), magnitude, SHAPE)
    assert nm.to_bool().ravel().tolist() == [False, False, True] * 40


def test_votes_come_before_magnitude():
    masks = np.ones((3, 1, 4), dtype=bool)
    masks[:, 0, 3] = False  # voted out by all, though it is the largest
    magnitude = np.array([0.0, 1.0, 2.0, 9.0], dtype=np.float32)
    assert select_layer(counted(masks), 1, magnitude, (1, 4)).to_bool().tolist() == [
        [True, True, True, False]
    ]
    assert select_nm(counted(masks), Pattern(2, 4), magnitude, (1, 4)).to_bool().tolist() == [
        [False, True, True, False]
    ]


def test_steps_do_not_show(monkeypatch):
    shape = (20, 48)
    masks, magnitude = case(3, 2, shape, 4)
    layer = [select_layer(counted(masks), p, magnitude, shape) for p in range(0, 961, 60)]
    nm = select_nm(counted(masks), Pattern(1, 3), magnitude, shape)
    monkeypatch.setattr(module, "_BYTES", 8)
    monkeypatch.setattr(module, "_WEIGHTS", 10)
    again = [select_layer(counted(masks), p, magnitude, shape) for p in range(0, 961, 60)]
    assert layer == again
    assert nm == select_nm(counted(masks), Pattern(1, 3), magnitude, shape)


def test_selecting_twice_gives_the_same():
    masks, magnitude = case(4, 6, SHAPE, 5)
    counter = counted(masks)
    assert select_layer(counter, 60, magnitude, SHAPE) == select_layer(
        counter, 60, magnitude, SHAPE
    )


@pytest.mark.parametrize("prune", [-1, 121])
def test_prune_out_of_range(prune):
    counter = counted(np.zeros((1, *SHAPE), dtype=bool))
    with pytest.raises(ModelError, match=f"Cannot prune {prune} of 120"):
        select_layer(counter, prune, np.ones(120, dtype=np.float32), SHAPE)


@pytest.mark.parametrize(
    ("magnitude", "shape"),
    [(np.ones(119), SHAPE), (np.ones(SHAPE), SHAPE), (np.ones(120), (5, 23))],
)
def test_sizes_that_do_not_fit(magnitude, shape):
    counter = counted(np.zeros((1, *SHAPE), dtype=bool))
    with pytest.raises(ModelError, match="Votes of 120 weights do not fit"):
        select_layer(counter, 60, magnitude.astype(np.float32), shape)
    with pytest.raises(ModelError, match="Votes of 120 weights do not fit"):
        select_nm(counter, Pattern(2, 4), magnitude.astype(np.float32), shape)


def test_patterns_that_do_not_fit():
    counter = counted(np.zeros((1, *SHAPE), dtype=bool))
    magnitude = np.ones(120, dtype=np.float32)
    with pytest.raises(ModelError, match="'2:5' needs d_in divisible by 5, got 24"):
        select_nm(counter, Pattern(2, 5), magnitude, SHAPE)
    with pytest.raises(ConfigError, match="`pruner.pattern` must be 'N:M'"):
        select_nm(counter, Pattern(), magnitude, SHAPE)
