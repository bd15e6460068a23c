"""The factor against the inverse it stands for; errors that say what to do."""

import pytest
import torch

from fedprune.errors import ModelError
from fedprune.pruning import hessian
from fedprune.pruning.hessian import damped, inverse_factor, reconstruction_error
from tests.support.moments import correlated, damped64


@pytest.mark.parametrize("size", [1, 2, 37, 300])
@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_factor_is_that_of_the_inverse(size, damping):
    _, moments = correlated(1, size, dead=(0,) if size > 30 else ())
    before = moments.clone()
    upper = inverse_factor(moments, damping).upper
    inverse = torch.linalg.inv(damped64(moments, damping))
    expected = torch.linalg.cholesky(inverse, upper=True)
    assert upper.dtype == torch.float32
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.double(), expected, rtol=0, atol=1e-4 * expected.max())
    assert torch.equal(moments, before)


def test_halving_does_not_show(monkeypatch):
    _, moments = correlated(1, 61)
    expected = inverse_factor(moments, 0.01).upper
    monkeypatch.setattr(hessian, "_LEAF", 2)
    assert torch.allclose(inverse_factor(moments, 0.01).upper, expected, rtol=1e-3, atol=1e-7)


def test_dead_inputs_are_found_and_stand_alone():
    _, moments = correlated(1, 12, dead=(3, 11))
    factor = inverse_factor(moments, 0.01)
    assert factor.dead.nonzero().flatten().tolist() == [3, 11]
    assert factor.upper[3].count_nonzero() == 1
    assert factor.upper[:, 11].count_nonzero() == 1
    assert torch.isfinite(factor.upper).all()


def test_all_inputs_dead():
    matrix, dead = damped(torch.zeros(5, 5), 0.01)
    assert bool(dead.all())
    assert torch.allclose(matrix, 1.01 * torch.eye(5))


def test_damping_adds_a_share_of_the_living_mean():
    moments = torch.diag(torch.tensor([2.0, 0.0, 4.0]))
    matrix, _ = damped(moments, 0.5)
    assert matrix.diagonal().tolist() == [3.5, 4.5, 5.5]


def test_scale_of_the_moments_only_scales_the_factor():
    _, moments = correlated(1, 20, dead=(4,))
    small, large = inverse_factor(moments, 0.1), inverse_factor(moments * 2.0**20, 0.1)
    assert torch.equal(small.upper, large.upper * 2.0**10)


def test_float64_where_float32_does_not_suffice():
    whole = torch.randint(-8, 9, (300, 3), generator=torch.Generator().manual_seed(0)).float()
    moments = whole @ whole.T  # exact; its least eigenvalue is what is added next
    moments.diagonal().add_(2.0**-15)
    assert torch.linalg.cholesky_ex(moments.flip(0, 1)).info > 0
    upper = inverse_factor(moments, 0.0).upper.double()
    assert torch.allclose(upper @ moments.double() @ upper.T, torch.eye(300).double(), atol=1e-2)


def test_indefinite_moments_say_what_to_raise():
    moments = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    with pytest.raises(ModelError, match=r"2 inputs.*`pruner.damping` \(now 0.25.*num_calibration"):
        inverse_factor(moments, 0.25)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_that_are_no_numbers(bad):
    moments = torch.eye(4)
    moments[1, 2] = bad
    with pytest.raises(ModelError, match=r"NaN or infinite.*`pruner.damping` \(now 0.01\)"):
        inverse_factor(moments, 0.01)


@pytest.mark.parametrize("columns", [1024, 7])
def test_reconstruction_error_is_that_of_the_outputs(monkeypatch, columns):
    monkeypatch.setattr(hessian, "_COLUMNS", columns)
    inputs = torch.randn(90, 30, generator=torch.Generator().manual_seed(1))
    weight, _ = correlated(11, 30)
    new = weight * (weight.abs() > 0.5)
    expected = (inputs @ (weight - new).T).square().sum() / (inputs @ weight.T).square().sum()
    found = reconstruction_error(weight, new, inputs.T @ inputs)
    assert found == pytest.approx(expected.item(), rel=1e-4)
    assert reconstruction_error(weight.bfloat16(), weight.bfloat16(), inputs.T @ inputs) == 0.0
    assert reconstruction_error(weight, new, torch.zeros(30, 30)) == 0.0
