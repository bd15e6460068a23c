"""Outlier shares against a count over all scores at once; sparsities against the formula."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import ModelError
from fedprune.pruning import owl
from fedprune.pruning.owl import outlier_share, owl_sparsities
from fedprune.pruning.statistics import ColumnStatistics

SHAPES = {"q": (24, 16), "up": (40, 16), "down": (16, 40)}


def block(seed, dtype=torch.float32):
    """Return heavy-tailed weights, and inputs of which q and up share theirs."""
    rng = np.random.default_rng(seed)
    weights = {
        name: torch.from_numpy(rng.standard_t(3, shape)).to(dtype) for name, shape in SHAPES.items()
    }
    sums = {d_in: rng.lognormal(3, 2, d_in).astype(np.float32) for d_in in (16, 40)}
    stats = {
        name: ColumnStatistics(torch.from_numpy(sums[d_in]), 77)
        for name, (_, d_in) in SHAPES.items()
    }
    return weights, stats


def oracle_share(weights, stats, threshold):
    scores = np.concatenate(
        [
            (
                abs(weight.double().numpy())
                * np.sqrt(stats[name].sum_squares.double().numpy() / stats[name].tokens)
            ).ravel()
            for name, weight in weights.items()
        ]
    )
    return np.mean(scores > threshold * scores.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [1.0, 3.0, 5.0])
def test_share_is_the_count_over_all_linears(dtype, threshold):
    weights, stats = block(1, dtype)
    expected = oracle_share(weights, stats, threshold)
    assert 0 < expected < 0.5
    assert outlier_share(weights, stats, threshold) == expected


def test_linears_with_other_token_counts_are_put_on_one_scale():
    weights, stats = block(3)
    stats["down"].tokens = 7
    assert outlier_share(weights, stats, 2.0) == oracle_share(weights, stats, 2.0)


def test_steps_do_not_show(monkeypatch):
    weights, stats = block(4)
    before = outlier_share(weights, stats, 1.5)
    monkeypatch.setattr(owl, "_BLOCK", 50)
    assert outlier_share(weights, stats, 1.5) == before


def test_scores_equal_to_the_threshold_are_no_outliers():
    stats = {"a": ColumnStatistics(torch.ones(4), 1)}
    assert outlier_share({"a": torch.ones(4, 4)}, stats, 1.0) == 0
    assert outlier_share({"a": torch.zeros(4, 4)}, stats, 1.0) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_finite(bad):
    weights, stats = block(5)
    weights["q"][0, 0] = bad
    with pytest.raises(ModelError, match="NaN or infinite"):
        outlier_share(weights, stats, 5.0)


def test_statistics_must_fit():
    weights, stats = block(6)
    with pytest.raises(ModelError, match=r"'down' needs statistics of its 40 inputs, got \(16,\)"):
        outlier_share(weights, {**stats, "down": stats["q"]}, 5.0)
    with pytest.raises(ModelError, match="'down' needs statistics of its 40 inputs, got none"):
        outlier_share(weights, {"q": stats["q"], "up": stats["up"]}, 5.0)


def oracle_sparsities(shares, sparsity, spread):
    """The published lines: ratios between 0 and 2 lambda, centred on the mean density."""
    percent = 100 * np.array(shares)
    ratios = (percent - percent.min()) * (1 / (percent.max() - percent.min()) * spread * 2)
    return 1 - (ratios - ratios.mean() + (1 - sparsity))


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(lambda d: len(set(d)) > 1),
    st.sampled_from([0.5, 0.6, 0.7, 0.8]),
    st.sampled_from([0.02, 0.08, 0.09]),
)
def test_sparsities_are_the_published_ones(shares, sparsity, spread):
    shares = [share / 7000 for share in shares]
    found = owl_sparsities(shares, sparsity, spread)
    assert found == pytest.approx(oracle_sparsities(shares, sparsity, spread), abs=1e-6)
    assert abs(np.mean(found) - sparsity) < 1e-6
    order = np.argsort(shares, kind="stable")
    assert (np.diff(np.array(found)[order]) <= 0).all()


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.03, 0.5, 0.97, 0.995]),
    st.sampled_from([0.08, 0.5, 2.0]),
)
@settings(deadline=None)
def test_the_mean_holds_where_sparsities_are_cut(shares, sparsity, spread):
    found = np.array(owl_sparsities(shares, sparsity, spread))
    assert abs(found.mean() - sparsity) < 1e-6
    assert found.min() >= 0 and found.max() <= max(0.99, sparsity)


def test_cut_sparsities_shift_the_others_alike():
    # Uncut 0.05 + 0.2/3 - (0, 0, 0.2): the last would be below zero.
    assert owl_sparsities([0.1, 0.1, 0.3], 0.05, 0.1) == [0.075, 0.075, 0.0]


def test_equal_shares_are_uniform():
    assert owl_sparsities([0.01] * 3, 0.7, 0.08) == [0.7] * 3
    assert owl_sparsities([0.0], 0.7, 0.08) == [0.7]
