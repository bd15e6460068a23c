"""GPTQ against an optimal brain surgeon that inverts anew for every column."""

import pytest
import torch

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.pruning.gptq import GptqPruner, gptq
from fedprune.pruning.grid import Grid
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.hessian import inverse_factor, reconstruction_error
from fedprune.pruning.rounding import round_weight
from fedprune.pruning.statistics import ColumnStatistics, MomentStatistics
from tests.support.moments import correlated, damped64
from tests.support.pruning_paths import take_path
from tests.support.quantizers import scale_of, swept

DAMPING = 0.01
SPEC = MaskSpec(0.0, Pattern(), "row")
CASES = [
    ((5, 64), Grid(4, 32, True), torch.float32),
    ((3, 64), Grid(4, 32, False), torch.bfloat16),
    ((4, 192), Grid(4, 64, False), torch.float32),
    ((4, 20), Grid(4, None, True), torch.float16),
    ((3, 160), Grid(4, None, False), torch.float32),
    ((2, 64), Grid(8, 32, True), torch.bfloat16),
    ((2, 256), Grid(4, 128, True), torch.float32),
]


def moments_of(moments):
    return MomentStatistics(moments, 99)


def pruner(grid, act_order=False, damping=DAMPING):
    return GptqPruner(grid, damping, act_order)


def oracle(weight, moments, grid, order=None):
    hessian = damped64(moments, DAMPING)
    columns = weight.shape[1]
    group, static = grid.group_size or columns, None
    order = torch.arange(columns) if order is None else order
    hessian = hessian[order][:, order]
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    if not torch.equal(order, torch.arange(columns)):
        costs = torch.empty(columns).double()
        costs[order] = torch.stack([1 / inverse[0, 0] for inverse in inverses])
        found = [
            [
                scale_of(part.tolist(), cost.tolist(), grid.bits, grid.symmetric, weight.dtype)
                for part, cost in zip(row.split(group), costs.split(group), strict=True)
            ]
            for row in weight
        ]
        both = torch.tensor(found, dtype=torch.float64)
        static = both[..., 0], both[..., 1], (order // group).tolist()
    codes, scales, zeros = swept(
        weight[:, order],
        inverses,
        (grid.bits, group, grid.symmetric),
        lambda j, _: [True] * len(weight),
        static,
    )
    back = torch.empty_like(codes)
    back[:, order] = codes
    return back, scales, zeros


def check(found, expected, grid):
    codes, scales, zeros = expected
    step = 2 * torch.finfo(found.scales.dtype).eps
    assert torch.allclose(found.scales.double(), scales, rtol=max(step, 1e-5))
    assert torch.equal(found.codes, codes)
    assert found.bits == grid.bits and found.mask.sparsity == 0
    if grid.symmetric:
        assert found.zeros is None
    else:
        assert torch.equal(found.zeros.float(), zeros.float())


@pytest.mark.parametrize(("shape", "grid", "dtype"), CASES, ids=str)
def test_equals_the_oracle(shape, grid, dtype, path):
    weight, moments = correlated(*shape, dead=(3,))
    weight = weight.to(dtype)
    found = pruner(grid).prune(weight, moments_of(moments), SPEC)
    check(found, oracle(weight, moments, grid), grid)


@pytest.mark.parametrize(("shape", "grid", "dtype"), CASES, ids=str)
def test_act_order_equals_the_oracle_and_keeps_groups_of_neighbours(shape, grid, dtype, path):
    weight, moments = correlated(*shape, dead=(3,))
    weight = weight.to(dtype)
    order = sorted(range(shape[1]), key=lambda j: (-float(moments[j, j]), j))
    found = pruner(grid, act_order=True).prune(weight, moments_of(moments), SPEC)
    check(found, oracle(weight, moments, grid, torch.tensor(order)), grid)


@pytest.mark.parametrize("grid", [Grid(4, 32, True), Grid(4, 64, False), Grid(8, None, True)])
def test_paths_agree(grid, monkeypatch):
    weight, moments = correlated(150, 192, seed=3, dead=(5,))
    for act_order in (False, True):
        take_path(monkeypatch, "compiled")
        found = pruner(grid, act_order).prune(weight, moments_of(moments), SPEC)
        take_path(monkeypatch, "tensors")
        other = pruner(grid, act_order).prune(weight, moments_of(moments), SPEC)
        # A scale or a code may fall to the other side where two are equally good.
        assert (found.codes == other.codes).float().mean() > 0.99
        errors = [reconstruction_error(weight, one.dense(), moments) for one in (found, other)]
        assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_below_that_of_rounding(bits, symmetric):
    weight, moments = correlated(64, 128)
    grid, squares = Grid(bits, 32, symmetric), moments.diagonal().clone()
    rounded = round_weight(weight, squares, grid, DAMPING)
    errors = [reconstruction_error(weight, rounded.dense(), moments)]
    for act_order in (False, True):
        found = pruner(grid, act_order).prune(weight, moments_of(moments), SPEC)
        errors.append(reconstruction_error(weight, found.dense(), moments))
    assert max(errors[1:]) < 0.7 * errors[0]


def test_the_weight_is_not_changed_and_its_stride_does_not_show(path):
    weight, moments = correlated(20, 64)
    factor, grid = inverse_factor(moments, DAMPING), Grid(4, 32, True)
    for given in (weight.bfloat16(), torch.nn.Parameter(weight.T.clone()).T):
        before = given.clone()
        found = gptq(given, factor, grid)
        assert found == gptq(given.detach().clone().contiguous(), factor, grid)
        assert found.scales.dtype == given.dtype
        assert torch.equal(given, before)


def test_inputs_that_no_text_showed_are_rounded_by_themselves(path):
    weight, _ = correlated(6, 64)
    grid = Grid(4, 32, True)
    found = pruner(grid).prune(weight, moments_of(torch.zeros(64, 64)), SPEC)
    assert found == round_weight(weight, torch.zeros(64), grid, DAMPING)


@pytest.mark.parametrize("rank", [1, 5])
def test_moments_of_few_tokens_are_damped(rank, path):
    inputs = torch.randn(rank, 64, generator=torch.Generator().manual_seed(0))
    weight, _ = correlated(6, 64)
    moments = inputs.T @ inputs
    for act_order in (False, True):
        found = pruner(Grid(4, 32, True), act_order).prune(weight, moments_of(moments), SPEC)
        assert reconstruction_error(weight, found.dense(), moments) < 1e-3


def test_what_cannot_be_quantised_is_refused(path):
    weight, moments = correlated(3, 48)
    known = moments_of(moments)
    with pytest.raises(ModelError, match=r"`pruner.group_size` must divide.*32 for one of 48"):
        pruner(Grid(4, 32, True)).prune(weight, known, SPEC)
    with pytest.raises(ModelError, match="'gptq' needs second moments"):
        pruner(Grid(4, None, True)).prune(weight, ColumnStatistics(torch.ones(48), 1), SPEC)
    with pytest.raises(ModelError, match="make finite weights"):
        large = weight.sign().mul(6e4).half()
        pruner(Grid(4, None, False)).prune(large, known, SPEC)
    weight[1, 2] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinite"):
        pruner(Grid(4, None, True)).prune(weight, known, SPEC)


def test_ties_of_equal_inputs_go_by_index():
    known = moments_of(torch.eye(8))
    assert known.ordered_factor(DAMPING)[0].tolist() == list(range(8))
    assert known.ordered_factor(DAMPING) is known.ordered_factor(DAMPING)
