"""Two-sided ALPS against its objective written out as one dense quadratic form."""

import numpy as np
import pytest
import torch

from fedprune.config import config_from_overrides
from fedprune.config.pattern import Pattern
from fedprune.errors import ConfigError, ModelError
from fedprune.pruning import two_sided
from fedprune.pruning.alps import alps
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.hessian import damped
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import MomentStatistics, beside
from fedprune.pruning.two_sided import TwoSidedAlpsPruner, two_sided_alps
from tests.support.pruning_oracle import expected_survivors

ROWS, COLUMNS, DAMPING = 6, 8, 0.01


def moments_of(seed, width, tokens=60):
    """Return second moments of correlated vectors of unlike size."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, width)) @ rng.standard_normal((width, width))
    scaled = mixed * rng.lognormal(0, 1, width)
    return torch.from_numpy(scaled.T @ scaled).float()


def problem(seed, rows=ROWS, columns=COLUMNS):
    weight = torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns))).float()
    return weight, moments_of(seed + 1, columns), moments_of(seed + 2, rows)


def kronecker(moments, outputs):
    """Return the Hessian of the objective by the entries of a weight, row after row."""
    left = damped(outputs, 0.1)[0].double()
    right = damped(moments, DAMPING)[0].double()
    return torch.kron(left, right)


def loss(change, hessian):
    flat = change.double().reshape(-1)
    return float(flat @ hessian @ flat)


@pytest.mark.parametrize("seed", range(4))
def test_the_step_solves_the_dense_system(seed):
    _, moments, outputs = problem(seed)
    left, right = (damped(one, 0.1)[0] for one in (outputs, moments))
    rho, step = 0.3, torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    system = torch.kron(left.double(), right.double())
    system += rho * torch.eye(len(system), dtype=torch.float64)
    expected = rho * torch.linalg.solve(system, step.double().reshape(-1)).reshape(step.shape)
    target = torch.ones(ROWS, COLUMNS)
    found = two_sided._penalised(left, right)(rho)(target, step) - target
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_survivors_are_the_best_on_their_support(monkeypatch, seed):
    monkeypatch.setattr(two_sided, "_STEPS", 400)
    monkeypatch.setattr(two_sided, "_TOLERANCE", 0.0)
    weight, moments, outputs = problem(seed)
    new, mask = two_sided_alps(weight, moments, outputs, MaskSpec(0.5, Pattern(), "layer"), DAMPING)
    hessian, kept = kronecker(moments, outputs), mask.reshape(-1)
    flat = weight.double().reshape(-1)
    best = torch.zeros_like(flat)
    best[kept] = torch.linalg.solve(hessian[kept][:, kept], (hessian @ flat)[kept])
    assert loss(weight - new, hessian) == pytest.approx(
        loss(weight - best.reshape(weight.shape), hessian), rel=1e-3
    )


@pytest.mark.parametrize("group", ["layer", "row"])
@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_the_objective_falls_below_that_of_one_side(group, sparsity):
    spec, ratios = MaskSpec(sparsity, Pattern(), group), []
    for seed in range(0, 60, 3):
        weight, moments, outputs = problem(seed, 12, 16)
        both, mask = two_sided_alps(weight, moments, outputs, spec, DAMPING)
        one, _ = alps(weight, moments, spec, DAMPING)
        assert int(mask.sum()) == expected_survivors((12, 16), spec)
        assert torch.equal(both != 0, mask)
        hessian = kronecker(moments, outputs)
        ratios.append(loss(weight - both, hessian) / loss(weight - one, hessian))
    assert np.mean(np.array(ratios) < 1) >= 0.9 and np.median(ratios) < 0.8


def test_alike_outputs_are_the_one_sided_problem():
    weight, moments, _ = problem(1, 12, 16)
    spec = MaskSpec(0.5, Pattern(), "row")
    both, mask = two_sided_alps(weight, moments, torch.eye(12), spec, DAMPING)
    one, other = alps(weight, moments, spec, DAMPING)
    assert float((mask != other).float().mean()) < 0.03
    hessian = kronecker(moments, torch.eye(12))
    assert loss(weight - both, hessian) == pytest.approx(loss(weight - one, hessian), rel=0.02)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_outputs_moments_does_not_matter(scale):
    weight, moments, outputs = problem(2)
    spec = MaskSpec(0.5, Pattern(2, 4), "row")
    first = two_sided_alps(weight, moments, outputs, spec, DAMPING)
    second = two_sided_alps(weight, moments, outputs * scale, spec, DAMPING)
    torch.testing.assert_close(first[0], second[0], rtol=1e-3, atol=1e-4)


def test_the_pruner_looks_at_outputs_where_they_are_known():
    weight, moments, outputs = problem(3, 12, 16)
    pruner = make_pruner(
        config_from_overrides(
            ["pruner=alps", "strategy=fedhessian", "pruner.two_sided=true"]
        ).pruner
    )
    assert isinstance(pruner, TwoSidedAlpsPruner)
    spec, known = MaskSpec(0.5, Pattern(), "layer"), MomentStatistics(moments, 60)
    plain = pruner.prune(weight, known, spec)
    assert torch.equal(plain.dense(), alps(weight, moments, spec, DAMPING)[0])
    informed = pruner.prune(weight, beside(known, outputs), spec)
    expected = two_sided_alps(weight, moments, outputs, spec, DAMPING)[0]
    assert torch.equal(informed.dense(), expected) and not torch.equal(plain.dense(), expected)


def test_what_is_not_finite_is_refused():
    weight, moments, outputs = problem(4)
    outputs[0, 0] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        two_sided_alps(weight, moments, outputs, MaskSpec(0.5, Pattern(), "row"), DAMPING)


def test_clients_that_prune_know_nothing_of_outputs():
    with pytest.raises(ConfigError, match=r"`pruner.two_sided`.*strategy=fedhessian"):
        config_from_overrides(["pruner=alps", "strategy=fedspallm", "pruner.two_sided=true"])
