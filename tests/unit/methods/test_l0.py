"""The l0 mean against Eq. 5 in fractions, and mask expansion against Eqs. 6 and 7."""

import weakref
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import ConfigError, ModelError, QuorumError, WireError
from fedprune.methods.fedspallm import average as l0
from fedprune.methods.fedspallm.average import WeightSums, expand
from fedprune.methods.vote_selection import Rule, select, select_nm
from fedprune.methods.votes import VoteCounter
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask
from tests.support.sparse import added, case

FREE = Pattern()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def oracle_means(changes, weights, size):
    """Return Eq. 5 and the mean of the masked weights, as fractions."""
    l0_mean, fedavg = [], []
    masks = [change.mask.to_bool().ravel() for change in changes]
    values = [change.dense().double().numpy().ravel() for change in changes]
    for j in range(size):
        kept = [(w, v[j]) for w, m, v in zip(weights, masks, values, strict=True) if m[j]]
        total = sum(w * Fraction(float(v)) for w, v in kept)
        l0_mean.append(total / sum(w for w, _ in kept) if kept else Fraction(0))
        fedavg.append(total / sum(weights))
    return l0_mean, fedavg


def assert_rounded(found, exact, slack=Fraction(0)):
    """Assert that float32 numbers are within half a unit in their last place of the fractions."""
    for number, fraction in zip(found.reshape(-1).tolist(), exact, strict=True):
        half = abs(fraction) * Fraction(1, 2**24) * Fraction(1000001, 1000000)
        assert abs(Fraction(number) - fraction) <= half + slack


def test_three_clients_by_hand():
    base = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    weights = [[1.5, 0.0, 2.0, 0.0], [2.5, 3.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]]
    masks = [[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]]
    sums = WeightSums(base)
    for weight, mask in zip(weights, masks, strict=True):
        keep = BitMask.from_bool(np.array([mask], dtype=bool))
        sums.add(SparseWeight.from_dense(torch.tensor([weight]), keep))
    mean = sums.mean("l0")
    assert mean.tolist() == [[2.0, 4.0, 2.0, 0.0]]
    assert sums.mean("fedavg").tolist() == [
        [np.float32(4 / 3), np.float32(8 / 3), np.float32(2 / 3), 0.0]
    ]
    rule = Rule(rounding="ceil")
    # Votes 1 1 2 3: all pruned the last, two the third, and of the tied the smaller mean goes.
    assert expand(sums, mean, 0.2, FREE, rule, True).to_bool().tolist() == [[1, 1, 1, 0]]
    assert expand(sums, mean, 0.5, FREE, rule, True).to_bool().tolist() == [[1, 1, 0, 0]]
    assert expand(sums, mean, 0.51, FREE, rule, True).to_bool().tolist() == [[0, 1, 0, 0]]
    assert expand(sums, mean, 0.51, FREE, Rule(), True).to_bool().tolist() == [[1, 1, 0, 0]]
    assert expand(sums, mean, 0.5, FREE, rule, False).to_bool().tolist() == [[1, 1, 1, 0]]
    assert expand(sums, mean, 0.5, Pattern(1, 2), rule, True).to_bool().tolist() == [[0, 1, 1, 0]]


def test_a_kept_zero_counts():
    base = torch.ones(1, 2)
    keep = BitMask.from_bool(np.ones((1, 2), dtype=bool))
    weights = (torch.tensor([[0.0, 2.0]]), base)
    sums = added(base, [SparseWeight.from_dense(weight, keep) for weight in weights])
    assert sums.mean("l0").tolist() == [[0.5, 1.5]]


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 40) | st.just(1), min_size=1, max_size=6),
    st.tuples(st.integers(1, 9), st.integers(1, 30)),
    st.sampled_from(DTYPES),
)
@settings(deadline=None)
def test_means_are_eq_5_and_the_mean_of_masked_weights(seed, weights, shape, dtype):
    base, changes = case(seed, len(weights), shape, dtype)
    sums = added(base, changes, weights)
    l0_mean, fedavg = oracle_means(changes, weights, base.numel())
    # Values of 16 bits are whole steps; a client's float32 may lose half a step.
    slack = Fraction(2.0**-42) if dtype == torch.float32 else Fraction(0)
    assert_rounded(sums.mean("l0"), l0_mean, slack)
    assert_rounded(sums.mean("fedavg"), fedavg, slack)
    assert sums.mean("l0").shape == shape and sums.mean("l0").dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_of_clients_does_not_matter(dtype):
    base, changes = case(1, 7, (20, 33), dtype)
    weights = [1, 5, 1, 2, 1, 7, 3]
    one = added(base, changes, weights)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(7).tolist()
        two = added(base, [changes[i] for i in order], [weights[i] for i in order])
        for kind in ("l0", "fedavg"):
            mean, other = one.mean(kind), two.mean(kind)
            assert mean.numpy().tobytes() == other.numpy().tobytes()
            for pattern in (FREE, Pattern(1, 3)):
                mask = expand(one, mean, 0.6, pattern, Rule(), True)
                assert mask == expand(two, other, 0.6, pattern, Rule(), True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clients_that_change_nothing_give_the_public_weights_bit_for_bit(dtype):
    base, changes = case(3, 5, (24, 32), dtype)
    base[0, :4] = torch.tensor([0.0, -0.0, 1e-7, -1e-7])
    masks = [change.mask for change in changes]
    sums = added(base, [SparseWeight.from_dense(base, m) for m in masks], [1, 2, 1, 1, 3])
    kept = np.logical_or.reduce([mask.to_bool() for mask in masks])
    expected = np.where(kept, base.float().numpy(), np.float32(0))
    assert sums.mean("l0").numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_do_not_show(monkeypatch, dtype):
    base, changes = case(7, 3, (70, 61), dtype)
    one = added(base, changes, [1, 2, 3])
    monkeypatch.setattr(l0, "_CHUNK", 64)
    two = added(base, changes, [1, 2, 3])
    for kind in ("l0", "fedavg"):
        assert one.mean(kind).numpy().tobytes() == two.mean(kind).numpy().tobytes()


def test_a_transposed_public_weight():
    base, changes = case(9, 2, (6, 10))
    one = added(base, changes).mean("l0")
    assert torch.equal(one, added(base.T.contiguous().T, changes).mean("l0"))


def test_a_public_weight_of_zeros():
    base = torch.zeros(2, 4)
    keep = BitMask.from_bool(np.ones((2, 4), dtype=bool))
    weights = (base, torch.full((2, 4), 0.25))
    sums = added(base, [SparseWeight.from_dense(weight, keep) for weight in weights])
    assert sums.mean("l0").tolist() == [[0.125] * 4] * 2


@pytest.mark.parametrize("scale", [2.0**-130, 2.0**120])
def test_tiny_and_huge_public_weights(scale):
    base, changes = case(10, 3, (4, 9))
    scaled = [SparseWeight.from_dense(change.dense() * scale, change.mask) for change in changes]
    found = added(base * scale, scaled).mean("l0")
    torch.testing.assert_close(found / scale, added(base, changes).mean("l0"), rtol=0, atol=1e-5)


def test_the_largest_total_still_counts():
    base, changes = case(11, 2, (4, 40), torch.bfloat16)
    weights = [2**31, 2**31 - 1]
    sums = WeightSums(base, total=2**32 - 1)
    for change, weight in zip(changes, weights, strict=True):
        sums.add(change, weight)
    exact, _ = oracle_means(changes, weights, 160)
    assert_rounded(sums.mean("l0"), exact, slack=Fraction(2.0**-29))
    limit = torch.full((4, 40), 15 * 2.0**-2)  # the largest public weight is above 2**-3
    assert 2.0**-3 < base.abs().max() < 2.0**-2
    keep = BitMask.from_bool(np.ones((4, 40), dtype=bool))
    for sign in (1, -1):
        sums = WeightSums(base, total=2**32 - 1)
        sums.add(SparseWeight.from_dense(sign * limit, keep), 2**32 - 1)
        assert torch.equal(sums.mean("l0"), sign * limit)


def test_clients_leave_nothing_behind():
    base, changes = case(12, 4, (5, 16))
    sums = added(base, changes)
    values = [weakref.ref(change.values) for change in changes]
    bits = [weakref.ref(change.mask.bits) for change in changes]
    changes.clear()
    assert not any(ref() is not None for ref in values + bits)
    assert sums.votes.clients == 4


def test_refused_clients_change_nothing():
    base, changes = case(13, 2, (4, 8))
    sums = added(base, changes)
    before = sums.mean("l0").numpy().tobytes()
    for shape, words in (
        ((4, 8), "Its largest weight is 100, .* none may be above"),
        ((8, 4), "It has 8x4 weights, expected 4x8"),
    ):
        keep = BitMask.from_bool(np.ones(shape, dtype=bool))
        with pytest.raises(WireError, match=words):
            sums.check(SparseWeight.from_dense(torch.full(shape, -100.0), keep))
    sums.check(changes[0])
    with pytest.raises(ConfigError, match="weight of at least 1, got 0"):
        sums.add(changes[0], 0)
    assert sums.votes.clients == 2
    assert sums.mean("l0").numpy().tobytes() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_public_weight_that_is_no_number(value):
    base = torch.ones(2, 3)
    base[1, 1] = value
    with pytest.raises(ModelError, match="A public weight holds NaN or infinite values"):
        WeightSums(base)


def test_no_client_has_no_mean():
    with pytest.raises(QuorumError, match="No client pruned this linear"):
        WeightSums(torch.ones(2, 3)).mean("l0")


def zeros_by_equations(masks, magnitude, sparsity, rounding):
    """Return the pruned set by Eqs. 6 and 7: the agreed zeros, then the k most voted others."""
    votes = sum(~mask.to_bool().ravel() for mask in masks).astype(int)
    size = votes.size
    exact = size * Fraction(str(sparsity))
    agreed = set(np.flatnonzero(votes == len(masks)).tolist())
    k = (ceil(exact) if rounding == "ceil" else floor(exact)) - len(agreed)
    others = sorted(set(range(size)) - agreed, key=lambda j: (-votes[j], magnitude[j], j))
    return agreed | set(others[: max(k, 0)])


def pruned_set(mask):
    return set(np.flatnonzero(~mask.to_bool().ravel()).tolist())


@given(
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.tuples(st.integers(1, 9), st.integers(1, 30)),
    st.sampled_from([0.0, 0.29, 0.5, 0.7, 0.99]),
    st.sampled_from(["ceil", "floor"]),
)
@settings(deadline=None)
def test_expansion_is_eqs_6_and_7(seed, clients, shape, sparsity, rounding):
    base, changes = case(seed, clients, shape)
    sums = added(base, changes)
    mean = sums.mean("l0")
    masks = [change.mask for change in changes]
    expected = zeros_by_equations(masks, mean.abs().ravel().tolist(), sparsity, rounding)
    found = expand(sums, mean, sparsity, FREE, Rule(rounding=rounding), True)
    exact = base.numel() * Fraction(str(sparsity))
    count = ceil(exact) if rounding == "ceil" else floor(exact)
    assert found.numel - found.survivors == count
    agreed = pruned_set(expand(sums, mean, sparsity, FREE, Rule(), False))
    if len(agreed) <= count:
        assert pruned_set(found) == expected
    else:  # more agreed than asked for: the rest of them survives, as zeros
        assert pruned_set(found) < agreed == expected


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("group", ["layer", "row", "column"])
@pytest.mark.parametrize("sparsity", [0.5, 0.61, 0.7])
def test_clients_that_change_nothing_give_fedprllms_vote(rounding, group, sparsity):
    base, changes = case(4, 6, (24, 36))
    masks = [change.mask for change in changes]
    votes = VoteCounter(base.numel())
    for mask in masks:
        votes.add(mask)
    magnitude = base.abs().reshape(-1).numpy()
    sums = added(base, [SparseWeight.from_dense(base, mask) for mask in masks])
    rule = Rule(group, rounding=rounding)
    found = expand(sums, sums.mean("l0"), sparsity, FREE, rule, True)
    assert found == select(votes, sparsity, magnitude, (24, 36), rule)
    found = expand(sums, sums.mean("l0"), 0.5, Pattern(2, 4), rule, True)
    nm = select_nm(votes, Pattern(2, 4), magnitude, (24, 36), rule).to_bool()
    # Groups in which all clients pruned more than two: what they agree on has no value.
    crowded = (votes.counts(0, votes.numel) == 6).reshape(-1, 4).sum(axis=1) > 2
    assert not crowded.all()
    assert np.array_equal(found.to_bool().reshape(-1, 4)[~crowded], nm.reshape(-1, 4)[~crowded])


def test_without_expansion_everything_that_somebody_kept_survives():
    base, changes = case(6, 3, (7, 13))
    sums = added(base, changes, [2, 1, 4])
    kept = np.logical_or.reduce([change.mask.to_bool() for change in changes])
    for pattern in (FREE, Pattern(2, 13)):
        found = expand(sums, sums.mean("l0"), 0.7, pattern, Rule(), False)
        assert np.array_equal(found.to_bool(), kept)
