"""Pruners on a real GPU, at the sizes of real layers, against the CPU."""

import pytest
import torch

from benchmarks.measure import layer
from fedprune.config.pattern import Pattern
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.hessian import inverse_factor
from fedprune.pruning.selection import runs_compiled
from fedprune.pruning.selection_kernels import prune_products
from fedprune.pruning.sparsegpt import sparsegpt
from tests.support.moments import correlated
from tests.support.pruning_oracle import expected_survivors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no CUDA device."),
]
FREE = Pattern()
SPECS = [MaskSpec(0.5, FREE, group) for group in ("row", "layer", "column")] + [
    MaskSpec(0.5, Pattern(2, 4), "row"),
    MaskSpec(0.73, FREE, "row"),
]


@pytest.mark.parametrize("shape", [(512, 4096), (256, 11008), (100, 28672), (37, 1001)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_masks_equal_those_of_the_cpu(shape, dtype, spec):
    shape = (shape[0], shape[1] // (spec.pattern.m or 1) * (spec.pattern.m or 1))
    weight, norms = layer(shape)
    weight = weight.to(dtype)
    assert not runs_compiled(weight.cuda())
    assert prune_products(weight.cuda(), norms.cuda(), spec) == prune_products(weight, norms, spec)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_magnitudes_with_many_ties(spec):
    weight, _ = layer((512, 4096))
    weight, ones = weight.to(torch.bfloat16).round(), torch.ones(4096)
    assert prune_products(weight.cuda(), ones.cuda(), spec) == prune_products(weight, ones, spec)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sparsegpt_is_that_of_the_cpu(spec):
    weight, moments = correlated(256, 384)
    factor = inverse_factor(moments, 0.01)
    expected, expected_mask = sparsegpt(weight, factor, spec)
    found, mask = sparsegpt(weight.cuda(), inverse_factor(moments.cuda(), 0.01), spec)
    assert int(mask.sum()) == expected_survivors((256, 384), spec)
    assert (mask.cpu() != expected_mask).float().mean() < 1e-3  # matrix products differ by device
    assert (found.cpu() - expected)[mask.cpu() & expected_mask].abs().median() < 1e-4
