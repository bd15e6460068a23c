"""Cost curves against sorted weights, allocations against every possible one of a small grid."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern, pruned_count
from fedprune.errors import ModelError
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.selection import prune_lowest
from fedprune.pruning.sensitivity import Curve, block_curves, cost_curve, sensitivity_sparsities
from fedprune.pruning.statistics import ColumnStatistics
from tests.support.pruning_oracle import expected_survivors


def linear(seed, rows, columns):
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_t(3, (rows, columns))).float()
    return weight, ColumnStatistics(torch.from_numpy(rng.lognormal(0, 1, columns)).float(), 10)


@pytest.mark.parametrize("group", ["layer", "row", "column"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_curve_is_what_wandas_masks_cost(group, dtype):
    weight, stats = linear(1, 12, 8)
    weight, sensitivity = weight.to(dtype), 0.7
    curve = cost_curve(weight, stats, sensitivity, group)
    size = {"layer": 96, "row": 8, "column": 12}[group]
    assert (curve.size, curve.weights, len(curve.costs)) == (size, 96, size)
    costs = weight.double().square() * stats.sum_squares.double() / stats.tokens
    scores = weight.float().abs() * stats.norms
    for steps in range(size):
        sparsity = curve.sparsity(steps)
        assert pruned_count(size, sparsity) == steps
        kept = prune_lowest(scores, MaskSpec(sparsity, Pattern(), group))
        expected = sensitivity * float(costs[~kept].sum())
        assert curve.costs[:steps].sum() == pytest.approx(expected, rel=1e-5)
    assert (np.diff(curve.costs) > -1e-6).all()


def test_a_large_matrix_has_a_thousand_steps_which_add_up_to_all_of_it():
    weight, stats = linear(2, 300, 77)
    curve = cost_curve(weight, stats, 1.0, "layer")
    assert len(curve.costs) == 1024
    total = (weight.double().square() * stats.sum_squares.double() / stats.tokens).sum()
    assert curve.costs.sum() == pytest.approx(float(total), rel=1e-5)
    for steps in (1, 333, 1000):
        count = pruned_count(curve.size, curve.sparsity(steps))
        assert count == curve.size * steps // 1024


def brute_force(curves, sparsity, least, most):
    """Return the lowest cost of all ways to take whole steps with exactly the mean."""
    total, best = sum(c.weights for c in curves), (np.inf, None)
    ranges = [
        [n for n in range(len(c.costs) + 1) if least <= n / len(c.costs) <= most] for c in curves
    ]
    for steps in itertools.product(*ranges):
        zeros = sum(c.weights * n / len(c.costs) for c, n in zip(curves, steps, strict=True))
        if abs(zeros - sparsity * total) < 1e-9:
            cost = sum(float(c.costs[:n].sum()) for c, n in zip(curves, steps, strict=True))
            best = min(best, (cost, steps))
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.25, 0.5, 0.75]), st.sampled_from([0.25, 1.0]))
def test_no_other_allocation_costs_less(seed, sparsity, spread):
    rng = np.random.default_rng(seed)
    curves = [Curve(np.sort(rng.lognormal(0, 2, 8)), 8, 16) for _ in range(4)]
    found = sensitivity_sparsities(
        [{"a": curves[0], "b": curves[1]}, {"a": curves[2]}, {"c": curves[3]}], sparsity, spread
    )
    shares = [found[0]["a"], found[0]["b"], found[1]["a"], found[2]["c"]]
    steps = [round(share * 8) for share in shares]
    assert shares == pytest.approx([n / 8 for n in steps], abs=1e-6)
    most = min(sparsity + spread, 0.99)
    cost, best = brute_force(curves, sparsity, max(sparsity - spread, 0), most)
    assert best is not None
    assert sum(float(c.costs[:n].sum()) for c, n in zip(curves, steps, strict=True)) == (
        pytest.approx(cost, rel=1e-9)
    )


@pytest.mark.parametrize("group", ["layer", "row", "column"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7, 0.93])
def test_the_mean_is_kept_whatever_the_shapes(group, sparsity):
    shapes = {"q": (96, 64), "k": (32, 64), "up": (200, 64), "down": (64, 200)}
    curves = [
        {
            name: cost_curve(*linear(block * 7 + n, *shape), 10.0 ** (n - block), group)
            for n, (name, shape) in enumerate(shapes.items())
        }
        for block in range(3)
    ]
    found = sensitivity_sparsities(curves, sparsity, 0.15)
    weights = {name: rows * columns for name, (rows, columns) in shapes.items()}
    total = 3 * sum(weights.values())
    mean = sum(share * weights[name] for one in found for name, share in one.items()) / total
    assert mean == pytest.approx(sparsity, abs=2e-6)
    kept = sum(
        expected_survivors(shapes[name], MaskSpec(share, Pattern(), group))
        for one in found
        for name, share in one.items()
    )
    assert 1 - kept / total == pytest.approx(sparsity, abs=1e-3)
    assert len({share for one in found for share in one.values()}) > 3
    shares = [share for one in found for share in one.values()]
    assert all(sparsity - 0.16 < share < min(sparsity + 0.151, 1.0) for share in shares)
    assert found[2]["q"] > found[0]["down"]  # the loss minds it ten thousand times less


def test_experts_share_a_sparsity_and_count_by_their_tokens():
    weights = {f"experts.{n}.up": linear(n, 16, 8)[0] for n in range(3)} | {
        "q": linear(9, 16, 8)[0]
    }
    stats = {name: linear(5, 16, 8)[1] for name in weights}
    stats["experts.0.up"] = ColumnStatistics(stats["experts.0.up"].sums / 10, 1)
    stats["experts.2.up"] = ColumnStatistics(torch.zeros(8), 0)
    curves = block_curves(
        weights.__getitem__, stats, dict.fromkeys(weights, 2.0), "row", set(weights) - {"q"}
    )
    assert list(curves) == ["experts.*.up", "q"]
    assert curves["experts.*.up"].weights == 3 * 128
    first = cost_curve(weights["experts.0.up"], stats["experts.0.up"], 0.2, "row")
    second = cost_curve(weights["experts.1.up"], stats["experts.1.up"], 2.0, "row")
    assert np.allclose(curves["experts.*.up"].costs, first.costs + second.costs)


def test_what_is_not_finite_is_refused_by_name():
    weight, stats = linear(3, 4, 4)
    weight[1, 1] = torch.inf
    with pytest.raises(ModelError, match="linear 'a': .*NaN or infinite"):
        block_curves({"a": weight}.__getitem__, {"a": stats}, {"a": 1.0}, "row", ())


def test_nothing_to_prune_has_nothing_to_say():
    assert sensitivity_sparsities([{}, {}], 0.5, 0.1) == [{}, {}]
