"""Swaps against all pairs tried one by one, fitted values against the normal equations."""

import numpy as np
import pytest
import torch

from fedprune.config.pattern import UNSTRUCTURED, Pattern
from fedprune.errors import ModelError
from fedprune.pruning import sparseswaps as module
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.least_squares import conjugate_gradients, normalised
from fedprune.pruning.selection import prune_lowest
from fedprune.pruning.sparseswaps import best_swap, refit, sparseswaps
from tests.support.moments import correlated, damped64, fitted, loss

PATTERNS = [UNSTRUCTURED, Pattern(2, 4), Pattern(1, 5)]


@pytest.fixture(params=["compiled", "tensors"])
def path(request, monkeypatch):
    """Take the compiled loops or the tensor operations."""
    if request.param == "tensors":
        monkeypatch.setattr(module, "runs_compiled", lambda _: False)
    return request.param


def wanda(weight, moments, pattern=UNSTRUCTURED, sparsity=0.6):
    return prune_lowest(
        weight.abs() * moments.diagonal().sqrt(), MaskSpec(sparsity, pattern, "row")
    )


def row_losses(weight, mask, moments):
    """Return z G z of each row, z being what is pruned, in float64."""
    pruned = weight.double() * ~mask
    return ((pruned @ moments.double()) * pruned).sum(1)


def all_swaps(weight, mask, moments, size):
    """Return {(survivor, pruned): true change of the loss} of one row, by trying each."""
    before = row_losses(weight[None], mask[None], moments)
    changes = {}
    for u in mask.nonzero().flatten().tolist():
        for p in (~mask).nonzero().flatten().tolist():
            if u // size == p // size:
                other = mask.clone()
                other[u], other[p] = False, True
                changes[u, p] = float(row_losses(weight[None], other[None], moments) - before)
    return changes


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("sparsity", [0.1, 0.6, 0.9])
def test_best_swap_is_the_best_of_all_and_changes_the_loss_as_it_says(pattern, sparsity):
    for seed in range(5):
        weight, moments = correlated(1, 20, seed=seed, dead=(7,))
        mask = wanda(weight, moments, pattern, sparsity)
        size = pattern.m or 20
        changes = all_swaps(weight[0], mask[0], moments, size)
        values = weight.double()
        gradient = ((values * ~mask) @ moments.double())[0].numpy()
        prune, keep, change = best_swap(
            values[0].numpy(),
            gradient,
            moments.numpy(),
            module._correlations(moments).numpy(),
            mask[0].numpy(),
            size,
        )
        least = min(changes.values())
        scale = float(row_losses(weight, mask, moments)[0])
        assert change == pytest.approx(min(least, 0.0), abs=1e-9 * scale)
        if least < -1e-9 * scale:
            assert change == pytest.approx(changes[prune, keep], abs=1e-9 * scale)


def test_correlations_bound_every_pair():
    _, moments = correlated(1, 30, dead=(4,))
    norms = moments.double().diagonal().sqrt()
    norms[4] = 1.0
    expected = (moments.double() / norms / norms[:, None]).abs().fill_diagonal_(0.0).amax(1)
    found = module._correlations(moments)
    assert bool((found >= expected).all())
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_row_gets_better_and_keeps_its_count(pattern, path):
    weight, moments = correlated(25, 40, dead=(0, 9))
    mask = wanda(weight, moments, pattern)
    before = mask.clone()
    found = sparseswaps(weight, moments, mask, 50, pattern)
    assert torch.equal(mask, before)
    old, new = row_losses(weight, mask, moments), row_losses(weight, found, moments)
    assert bool((new <= old).all())
    assert bool((new < 0.9 * old).sum() > 20)
    group = pattern.m or 40
    assert torch.equal(found.view(-1, group).sum(1), mask.view(-1, group).sum(1))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_ends_where_no_swap_gains_noticeably(pattern, path):
    weight, moments = correlated(4, 20)
    found = sparseswaps(weight, moments, wanda(weight, moments, pattern), 1000, pattern)
    losses = row_losses(weight, found, moments)
    for row in range(4):
        changes = all_swaps(weight[row], found[row], moments, pattern.m or 20)
        assert min(changes.values()) >= -1.001e-3 * losses[row]


def test_one_swap_after_the_other_is_the_same_as_many(path):
    weight, moments = correlated(10, 40)
    mask = wanda(weight, moments)
    together = sparseswaps(weight, moments, mask, 4)
    for _ in range(4):
        after = sparseswaps(weight, moments, mask, 1)
        assert bool(((after ^ mask).sum(1) <= 2).all())
        mask = after
    assert torch.equal(mask, together)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_paths_agree_whatever_the_split_of_rows(pattern, monkeypatch):
    weight, moments = correlated(33, 40, seed=2, dead=(8,))
    mask = wanda(weight, moments, pattern)
    mask[5] = True
    if not pattern.structured:
        mask[6] = False
    expected = sparseswaps(weight, moments, mask, 30, pattern)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(sparseswaps(weight, moments, mask, 30, pattern), expected)
    monkeypatch.setattr(module, "runs_compiled", lambda _: False)
    monkeypatch.setattr(module, "_PAIRS", 3 * 40 * (pattern.m or 40))
    assert torch.equal(sparseswaps(weight, moments, mask, 30, pattern), expected)


def test_no_swaps_return_the_mask():
    weight, moments = correlated(3, 8)
    mask = wanda(weight, moments)
    assert torch.equal(sparseswaps(weight, moments, mask, 0), mask)
    with pytest.raises(ModelError, match="divisible by 3, got 8"):
        sparseswaps(weight, moments, mask, 1, Pattern(1, 3))


def test_weights_of_any_dtype_and_stride(path):
    weight, moments = correlated(12, 16)
    mask = wanda(weight, moments)
    half = weight.bfloat16()
    expected = sparseswaps(half.float(), moments, mask, 9)
    assert torch.equal(sparseswaps(half, moments, mask, 9), expected)
    transposed = torch.nn.Parameter(half.float().T.clone()).T
    assert torch.equal(sparseswaps(transposed, moments, mask.T.contiguous().T, 9), expected)


def test_fitted_values_solve_the_normal_equations():
    weight, moments = correlated(20, 30)
    mask = wanda(weight, moments)
    found = refit(weight, moments, mask, 0.1)
    hessian = damped64(moments, 0.1)
    expected = fitted(weight, mask, hessian)
    best = loss(weight, expected, hessian)
    assert best <= loss(weight, found, hessian) < 1.001 * best
    assert found[~mask].count_nonzero() == 0
    assert torch.allclose(found.double(), expected, atol=0.02)


def test_conjugate_gradients_reach_the_solution():
    weight, moments = correlated(20, 30, dead=(3,))
    mask = wanda(weight, moments)
    mask[4], mask[5] = False, True
    problem = normalised(weight, moments, 0.1)
    start = torch.where(mask, problem.target, 0.0)
    found = conjugate_gradients(problem, mask, start, 200, 0.0) / problem.scale
    weight[:, 3] = 0.0
    expected = fitted(weight, mask, damped64(moments, 0.1))
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert torch.allclose(found[5], weight[5], atol=1e-5)
    assert found[4].count_nonzero() == 0


def test_each_step_lowers_the_error():
    weight, moments = correlated(8, 24)
    mask = wanda(weight, moments)
    problem = normalised(weight, moments, 0.01)
    start = problem.target * mask
    errors = [
        loss(problem.target, conjugate_gradients(problem, mask, start, steps, 0.0), problem.matrix)
        for steps in range(12)
    ]
    assert np.all(np.diff(errors) < 0)


def test_fitting_leaves_its_arguments_and_dead_inputs_alone():
    weight, moments = correlated(8, 24, dead=(2, 5))
    mask = wanda(weight, moments)
    mask[:, 2] = True
    before = weight.clone(), moments.clone(), mask.clone()
    found = refit(weight, moments, mask, 0.01)
    assert torch.isfinite(found).all()
    assert found[:, [2, 5]].count_nonzero() == 0
    for now, then in zip((weight, moments, mask), before, strict=True):
        assert torch.equal(now, then)
