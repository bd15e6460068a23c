"""Rounding against trying every code and every scale, number by number."""

import pytest
import torch

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.pruning.grid import Grid, fit
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.rounding import RoundingPruner, round_weight
from fedprune.pruning.statistics import ColumnStatistics, MomentStatistics
from fedprune.wire.masks import BitMask
from tests.support.moments import correlated
from tests.support.quantizers import nearest, scale_of

DAMPING = 0.01
SPEC = MaskSpec(0.0, Pattern(), "row")
CASES = [
    ((5, 64), Grid(4, 32, True), torch.float32),
    ((3, 64), Grid(4, 32, False), torch.bfloat16),
    ((4, 20), Grid(4, None, True), torch.float16),
    ((2, 128), Grid(8, 64, False), torch.bfloat16),
]


@pytest.mark.parametrize(("shape", "grid", "dtype"), CASES, ids=str)
def test_equals_the_oracle(shape, grid, dtype, path):
    weight, moments = correlated(*shape, dead=(3,))
    weight, squares = weight.to(dtype), moments.diagonal().clone()
    found = RoundingPruner(grid, DAMPING).prune(weight, ColumnStatistics(squares, 9), SPEC)
    size = grid.group_size or shape[1]
    costs = squares.double() / squares.double().mean() + DAMPING
    for row in range(shape[0]):
        for group in range(shape[1] // size):
            part = slice(group * size, (group + 1) * size)
            values = weight[row, part].tolist()
            scale, zero = scale_of(values, costs[part].tolist(), grid.bits, grid.symmetric, dtype)
            assert float(found.scales[row, group]) == scale
            assert grid.symmetric or int(found.zeros[row, group]) == zero
            codes = [nearest(value, scale, zero, grid.bits) for value in values]
            assert found.codes[row, part].tolist() == codes


def test_columns_that_matter_are_spared(path):
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    grid = Grid(4, 32, True)
    squares = torch.full((32,), 1e-3)
    squares[:4] = 100.0
    plain = round_weight(weight, torch.ones(32), grid, DAMPING).dense()
    spared = round_weight(weight, squares, grid, DAMPING).dense()
    assert (spared - weight)[:, :4].square().sum() < (plain - weight)[:, :4].square().sum()
    assert (spared - weight).square().sum() > (plain - weight).square().sum()


def test_the_scale_of_the_sums_does_not_show(path):
    weight, moments = correlated(9, 64, dead=(1,))
    squares, grid = moments.diagonal().clone(), Grid(4, 32, False)
    found = round_weight(weight, squares, grid, DAMPING)
    for factor in (2.0**-60, 2.0**60):
        assert round_weight(weight, squares * factor, grid, DAMPING) == found


def test_moments_serve_by_their_diagonal():
    weight, moments = correlated(9, 64)
    pruner, squares = RoundingPruner(Grid(4, 32, True), DAMPING), moments.diagonal().clone()
    known = MomentStatistics(moments, 3), ColumnStatistics(squares, 3)
    assert pruner.prune(weight, known[0], SPEC) == pruner.prune(weight, known[1], SPEC)


def test_groups_of_zeros_and_numbers_below_the_type(path):
    weight = torch.zeros(3, 64)
    weight[1] = 1e-9
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for symmetric in (True, False):
            found = round_weight(weight.to(dtype), torch.ones(64), Grid(4, 32, symmetric), DAMPING)
            assert not found.dense()[[0, 2]].any()
            assert (found.dense().float() - weight).abs().max() < 1e-8


@pytest.mark.parametrize("symmetric", [True, False])
def test_pruned_weights_are_zero_and_have_no_say(symmetric, path):
    weight = torch.randn(9, 64, generator=torch.Generator().manual_seed(0)) + 3
    keep = torch.rand(9, 64) < 0.5
    grid = Grid(4, 32, symmetric)
    mask = BitMask.from_bool(keep.numpy())
    found = round_weight(weight, torch.ones(64), grid, DAMPING, mask)
    assert not found.dense()[~keep].any() and found.mask == mask
    weight[~keep] = float("inf")
    assert round_weight(weight, torch.ones(64), grid, DAMPING, mask) == found


def test_the_first_of_equals_is_chosen(path):
    found = fit(torch.zeros(1, 1, 32), torch.ones(1, 32), Grid(4, 32, True), torch.float32)
    assert found.scales.item() == 1.0
    weight = torch.full((1, 1, 32), 7.5)
    found = fit(weight, torch.zeros(1, 32), Grid(4, 32, True), torch.float32)
    assert found.scales.item() == 1.0


def test_what_cannot_be_rounded_is_refused(path):
    weight, squares = torch.ones(3, 48), torch.ones(48)
    with pytest.raises(ModelError, match=r"`pruner.group_size` must divide.*64 for one of 48"):
        round_weight(weight, squares, Grid(4, 64, True), DAMPING)
    with pytest.raises(ModelError, match="'rounding' needs statistics of the inputs, got none"):
        RoundingPruner(Grid(4, None, True), DAMPING).prune(weight, None, SPEC)
    with pytest.raises(ModelError, match="NaN or infinite"):
        round_weight(weight, squares * torch.nan, Grid(4, None, True), DAMPING)
    with pytest.raises(ModelError, match="NaN or infinite"):
        round_weight(weight * torch.inf, squares, Grid(4, None, True), DAMPING)
