"""ALPS against its iteration as it is written, and against SparseGPT."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.pruning import alps as module
from fedprune.pruning.alps import alps
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.hessian import inverse_factor, reconstruction_error
from fedprune.pruning.selection import prune_lowest
from fedprune.pruning.sparsegpt import sparsegpt
from tests.support.moments import correlated, damped64, fitted, loss
from tests.support.pruning_oracle import expected_survivors, oracle_mask

FREE = Pattern()
DAMPING = 0.01
SPECS = [
    MaskSpec(0.5, FREE, "layer"),
    MaskSpec(0.7, FREE, "layer"),
    MaskSpec(0.6, FREE, "row"),
    MaskSpec(0.5, Pattern(2, 4), "layer"),
    MaskSpec(0.5, Pattern(1, 4), "layer"),
]


def written(weight, moments, spec):
    """Return D, in weights' own scale, and its mask by ADMM with B, D and V, in float64."""
    hessian = damped64(moments, DAMPING).numpy()
    scale = np.sqrt(np.diag(hessian))
    matrix = hessian / np.outer(scale, scale)
    dense = weight.double().numpy() * scale
    sparse, dual, rho = dense * (mask := oracle_mask(abs(dense), spec)), np.zeros_like(dense), 0.03
    before = mask
    for iteration in range(1, 301):
        right = dense @ matrix - dual + rho * sparse
        close = right @ np.linalg.inv(matrix + rho * np.eye(len(matrix)))
        mask = oracle_mask(abs(close + dual / rho), spec)
        sparse = (close + dual / rho) * mask
        dual = dual + rho * (close - sparse)
        if iteration % 3 == 0:
            changed = (mask != before).sum() / mask.sum()
            if changed <= 1e-3:
                break
            before = mask
            rho *= 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
    return sparse / scale, mask


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_equals_the_iteration_as_written(spec, monkeypatch):
    monkeypatch.setattr(module, "_STEPS", 0)
    weight, moments = correlated(17, 40)
    found, mask = alps(weight, moments, spec, DAMPING)
    expected, expected_mask = written(weight, moments, spec)
    assert np.array_equal(mask.numpy(), expected_mask)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < 1e-3


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_values_are_nearly_the_best_on_the_support(spec):
    weight, moments = correlated(30, 40)
    found, mask = alps(weight, moments, spec, DAMPING)
    hessian = damped64(moments, DAMPING)
    best = loss(weight, fitted(weight, mask, hessian), hessian)
    assert best <= loss(weight, found, hessian) < 1.01 * best


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_error_falls_from_wanda_to_sparsegpt_to_alps(spec):
    weight, moments = correlated(64, 96)
    wanda = weight * prune_lowest(weight.abs() * moments.diagonal().sqrt(), spec)
    sparse, _ = sparsegpt(weight, inverse_factor(moments, DAMPING), spec)
    best, _ = alps(weight, moments, spec, DAMPING)
    errors = [reconstruction_error(weight, new, moments) for new in (wanda, sparse, best)]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < 0.9 * errors[1]


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([0.0, 0.29, 0.5, 0.7, 0.999]),
    st.sampled_from(["layer", "row", "column"]),
    st.sampled_from([FREE, Pattern(2, 4), Pattern(1, 3)]),
)
@settings(deadline=None, max_examples=50)
def test_zeros_are_counted_exactly(shape, sparsity, group, pattern):
    shape = (shape[0], shape[1] * (pattern.m or 1))
    spec = MaskSpec(sparsity, pattern, group)
    weight, moments = correlated(*shape)
    found, mask = alps(weight, moments, spec, DAMPING)
    assert int(mask.sum()) == expected_survivors(shape, spec)
    assert found[~mask].count_nonzero() == 0
    assert bool(torch.isfinite(found).all())


def test_inputs_that_do_not_move_together_need_no_new_values():
    weight, _ = correlated(60, 80)
    moments = torch.diag(torch.rand(80, generator=torch.Generator().manual_seed(1)) + 0.1)
    spec = MaskSpec(0.6, FREE, "layer")
    found, mask = alps(weight, moments, spec, DAMPING)
    assert torch.allclose(found, weight * mask, atol=1e-5)
    best = weight * prune_lowest(weight.abs() * moments.diagonal().sqrt(), spec)
    least = reconstruction_error(weight, best, moments)
    assert reconstruction_error(weight, found, moments) < 1.01 * least


def test_equal_entries_go_by_index():
    _, mask = alps(torch.ones(2, 8), torch.eye(8), MaskSpec(0.5, FREE, "layer"), DAMPING)
    assert mask.int().tolist() == [[0] * 8, [1] * 8]
    _, mask = alps(torch.ones(2, 8), torch.eye(8), MaskSpec(0.5, Pattern(1, 4), "row"), DAMPING)
    assert mask.int().tolist() == [[0, 0, 0, 1] * 2] * 2


def test_tensor_path_chooses_the_same(monkeypatch):
    weight, moments = correlated(20, 24)
    expected = [alps(weight, moments, spec, DAMPING) for spec in SPECS]
    monkeypatch.setattr(module, "runs_compiled", lambda _: False)
    for spec, (new, mask) in zip(SPECS, expected, strict=True):
        found, same = alps(weight, moments, spec, DAMPING)
        assert torch.equal(mask, same)
        assert torch.equal(new, found)


@pytest.mark.parametrize("spec", [SPECS[1], SPECS[3]], ids=str)
def test_dead_inputs_have_no_say(spec):
    weight, moments = correlated(9, 24, dead=(2, 3, 17))
    found, mask = alps(weight, moments, spec, DAMPING)
    weight[:, [2, 3, 17]] = 100.0
    again, same = alps(weight, moments, spec, DAMPING)
    assert torch.equal(found, again)
    assert torch.equal(mask, same)
    assert found[:, [2, 3, 17]].count_nonzero() == 0
    assert torch.isfinite(found).all()


def test_inputs_are_not_changed_and_scale_does_not_show():
    weight, moments = correlated(9, 24, dead=(5,))
    weight = weight.bfloat16()
    before = weight.clone(), moments.clone()
    found, mask = alps(weight, moments, SPECS[1], DAMPING)
    assert torch.equal(weight, before[0])
    assert torch.equal(moments, before[1])
    again, same = alps(weight.float(), moments * 2.0**-20, SPECS[1], DAMPING)
    assert torch.equal(found, again)
    assert torch.equal(mask, same)


def test_bad_input_is_refused(monkeypatch):
    weight, moments = correlated(4, 8)
    with pytest.raises(ModelError, match="Raise `pruner.damping`"):
        alps(weight[:, :2], torch.tensor([[1.0, 3.0], [3.0, 1.0]]), SPECS[0], DAMPING)
    with pytest.raises(ModelError, match="divisible by 3, got 8"):
        alps(weight, moments, MaskSpec(0.5, Pattern(1, 3), "row"), DAMPING)
    for bad, compiled in ((float("nan"), True), (float("inf"), False)):
        monkeypatch.setattr(module, "runs_compiled", lambda _, here=compiled: here)
        weight[1, 1] = bad
        for spec in SPECS:
            with pytest.raises(ModelError, match="NaN or infinite"):
                alps(weight, moments, spec, DAMPING)
