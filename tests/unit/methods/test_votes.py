"""Bit-sliced counters against sums of boolean arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import ConfigError, WireError
from fedprune.methods import votes as module
from fedprune.methods.votes import VoteCounter
from fedprune.wire.masks import BitMask


def random_masks(clients, shape, seed=0):
    """Return boolean masks in which some weights are kept by all or by none."""
    rng = np.random.default_rng(seed)
    share = rng.choice([0.0, 0.2, 0.5, 0.9, 1.0], shape)
    return rng.random((clients, *shape)) < share


def counted(masks):
    """Add boolean masks to a new counter."""
    counter = VoteCounter(masks[0].size)
    for mask in masks:
        counter.add(BitMask.from_bool(mask))
    return counter


def pruning_clients(masks):
    """Return the votes as the definition says: clients that do not keep a weight."""
    return (~masks).sum(axis=0).ravel()


@pytest.mark.parametrize("clients", [1, 7, 8, 9, 127, 128, 129, 255, 256, 257, 300])
def test_counters_never_overflow(clients):
    shape = (3, 37)
    masks = random_masks(clients, shape)
    masks[:, 0, :5] = True  # nobody prunes these,
    masks[:, 1, :5] = False  # all prune these
    counter = counted(masks)
    expected = pruning_clients(masks)
    assert expected.min() == 0
    assert expected.max() == clients
    assert np.array_equal(counter.counts(0, 111), expected)
    assert len(counter.planes()) == clients.bit_length()


def test_more_clients_than_uint16_holds():
    counter = VoteCounter(3)
    mask = BitMask.from_bool(np.array([[True, False, False]]))
    other = BitMask.from_bool(np.array([[True, True, False]]))
    for _ in range(65_535):
        counter.add(mask)
    assert counter.counts(0, 3).dtype == np.uint16
    counter.add(other)
    assert counter.counts(0, 3).dtype == np.uint32
    assert counter.counts(0, 3).tolist() == [0, 65_535, 65_536]


def test_reading_between_masks():
    masks = random_masks(20, (2, 35))
    counter = VoteCounter(70)
    for number, mask in enumerate(masks, start=1):
        counter.add(BitMask.from_bool(mask))
        assert counter.clients == number
        assert np.array_equal(counter.counts(0, 70), pruning_clients(masks[:number]))


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (3, 5), (7, 9), (8, 64), (61, 111)])
def test_part_of_the_weights(start, stop):
    masks = random_masks(9, (3, 37))
    found = counted(masks).counts(start, stop)
    assert found.tolist() == pruning_clients(masks)[start:stop].tolist()


def test_steps_do_not_show(monkeypatch):
    masks = random_masks(70, (5, 101))
    expected = pruning_clients(masks)
    monkeypatch.setattr(module, "_WORDS", 3)
    monkeypatch.setattr(module, "_WEIGHTS", 17)
    counter = counted(masks)
    assert np.array_equal(counter.counts(0, 505), expected)
    assert np.array_equal(counter.histogram(), np.bincount(expected, minlength=71))


def test_masks_are_copied():
    bits = np.array([0b101], dtype=np.uint8)
    counter = VoteCounter(3)
    counter.add(BitMask(bits, (1, 3)))
    bits[0] = 0
    assert counter.counts(0, 3).tolist() == [0, 1, 0]


def test_mask_of_another_size():
    with pytest.raises(WireError, match="counted for 10 weights, got a mask of 12"):
        VoteCounter(10).add(BitMask.from_bool(np.ones((3, 4), dtype=bool)))


@given(st.lists(st.integers(1, 300) | st.just(1), max_size=25), st.integers(0, 2**31))
@settings(deadline=None)
def test_weighted_votes(weights, seed):
    masks = random_masks(len(weights), (3, 37), seed)
    counter = VoteCounter(111)
    expected = np.zeros(111, dtype=np.int64)
    for mask, weight in zip(masks, weights, strict=True):
        counter.add(BitMask.from_bool(mask), weight)
        expected += weight * ~mask.ravel()
    assert counter.clients == len(weights)
    assert counter.total == sum(weights)
    assert np.array_equal(counter.counts(0, 111), expected)
    assert len(counter.planes()) == counter.total.bit_length()
    if counter.total <= module.BINS:
        assert (
            counter.histogram().tolist()
            == np.bincount(expected, minlength=counter.total + 1).tolist()
        )


def test_large_weights_are_exact_and_gathered_in_bins():
    counter = VoteCounter(4)
    heavy, light = 2**31, 2**31 - 1
    counter.add(BitMask.from_bool(np.array([[True, False, False, True]])), heavy)
    counter.add(BitMask.from_bool(np.array([[True, True, False, False]])), light)
    assert counter.counts(0, 4).tolist() == [0, heavy, heavy + light, light]
    histogram = counter.histogram()
    assert histogram.size == module.BINS + 1
    assert histogram[0] == histogram[-1] == 1  # nobody; everybody
    assert histogram.sum() == 4
    assert abs(np.flatnonzero(histogram)[1:-1] - module.BINS / 2).max() <= 1


def test_only_unanimous_weights_are_in_the_outer_bins():
    counter = VoteCounter(4)
    counter.add(BitMask.from_bool(np.array([[True, False, True, False]])), 10**6)
    counter.add(BitMask.from_bool(np.array([[True, True, False, False]])))
    histogram = counter.histogram()
    assert np.flatnonzero(histogram).tolist() == [0, 1, module.BINS - 1, module.BINS]


def test_effective_clients():
    counter = VoteCounter(4)
    assert counter.effective_clients == 0
    mask = BitMask.from_bool(np.ones((1, 4), dtype=bool))
    for clients in (1, 2, 3):
        counter.add(mask)
        assert counter.effective_clients == clients
    counter.add(mask, 3)
    assert counter.effective_clients == pytest.approx(36 / 12)


@pytest.mark.parametrize("weight", [0, -1])
def test_weights_below_one(weight):
    with pytest.raises(ConfigError, match=f"`strategy.client_weights` .*at least 1, got {weight}"):
        VoteCounter(4).add(BitMask.from_bool(np.ones((1, 4), dtype=bool)), weight)


def test_total_of_more_than_32_bits():
    counter = VoteCounter(4)
    mask = BitMask.from_bool(np.ones((1, 4), dtype=bool))
    counter.add(mask, 2**32 - 2)
    with pytest.raises(
        ConfigError, match="client_weights` may add up to 4294967295, got 4294967296"
    ):
        counter.add(mask, 2)
    counter.add(mask)
    assert counter.total == 2**32 - 1
    assert counter.clients == 2
