"""Averages over many draws of layer sampling against full participation."""

import numpy as np
import pytest
import torch

from fedprune.methods.l0 import WeightSums
from fedprune.methods.layer_sampling import draw_layers, inverse_weights
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask

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


def reported(base, changes, weights):
    """Return the sums of those that report the block, given as indices."""
    sums = WeightSums(base)
    for change, weight in zip(changes, weights, strict=True):
        sums.add(change, weight)
    return sums


def sampled(counts, base, changes, weights, how):
    """Yield for each draw the sums of the clients that drew block 0."""
    everything = [range(BLOCKS)] * len(counts)
    for seed in range(DRAWS):
        drawn = draw_layers(everything, counts, BLOCKS, 1, seed, how)
        chosen = [i for i, blocks in enumerate(drawn) if 0 in blocks]
        if chosen:
            yield reported(base, [changes[i] for i in chosen], [weights[i] for i in chosen])


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
    whole = reported(base, changes, [1] * 6).mean("l0").numpy().ravel()
    draws = []
    for sums in sampled(counts, base, changes, [1] * 6, how):
        kept = sums.votes.counts(0, WEIGHTS) < sums.votes.total
        # Where nobody who reported kept a weight there is no mean to speak of.
        draws.append(np.where(kept, sums.mean("l0").numpy().ravel(), np.nan))
    assert standard_errors(draws, whole).max() < 3


def test_inverse_weights_undo_unequal_probabilities():
    counts = [1, 1, 2, 2, 4, 4, 8, 8]
    base, changes = clients(counts, survivors=1.0)
    whole = reported(base, changes, [1] * 8).mean("l0").numpy().ravel()
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
