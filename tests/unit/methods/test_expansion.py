"""Mask expansion against Eqs. 6 and 7, and against FedPrLLM's votes."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.methods.l0 import expand
from fedprune.methods.vote_selection import Rule, select, select_nm
from fedprune.methods.votes import VoteCounter
from tests.support.sparse import added, case

FREE = Pattern()


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
    sums = added(base, masks)
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
