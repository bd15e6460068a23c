"""SparseGPT against an optimal brain surgeon that inverts anew for every column."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.pruning import selection
from fedprune.pruning.gptq import gptq
from fedprune.pruning.grid import Grid
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.hessian import inverse_factor, reconstruction_error
from fedprune.pruning.selection_kernels import prune_count
from fedprune.pruning.sparsegpt import SparseGptPruner, sparsegpt, sparsegpt_quantized
from fedprune.pruning.statistics import MomentStatistics
from tests.support.moments import correlated, damped64
from tests.support.pruning_oracle import expected_survivors
from tests.support.quantizers import swept

FREE = Pattern()
DAMPING = 0.01
CASES = [
    ((9, 40), MaskSpec(0.5, FREE, "layer"), 16),
    ((9, 40), MaskSpec(0.7, FREE, "layer"), 40),
    ((31, 13), MaskSpec(0.45, FREE, "layer"), 5),
    ((5, 70), MaskSpec(0.6, FREE, "row"), 32),
    ((33, 9), MaskSpec(0.77, FREE, "row"), 4),
    ((12, 20), MaskSpec(0.5, FREE, "column"), 8),
    ((7, 40), MaskSpec(0.5, Pattern(2, 4), "layer"), 16),
    ((7, 40), MaskSpec(0.5, Pattern(1, 4), "row"), 6),
    ((6, 35), MaskSpec(0.5, Pattern(3, 5), "row"), 128),
    ((70, 16), MaskSpec(0.5, Pattern(4, 8), "layer"), 8),
]


def oracle(weight, moments, spec, block_size, dead=()):
    """Prune one column after the other, with the inverse Hessian of the columns that are left."""
    weight, hessian = weight.double().clone(), damped64(moments, DAMPING)
    weight[:, list(dead)] = 0.0
    rows, columns = weight.shape
    mask = torch.ones(rows, columns, dtype=torch.bool)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]

    def scores(start, stop):
        costs = torch.stack([inverse[0, 0] for inverse in inverses[start:stop]])
        return weight[:, start:stop].square() / costs

    m = spec.pattern.m or 1
    width = math.ceil(block_size / m) * m
    for j in range(columns):
        if spec.pattern.structured and j % m == 0:
            mask[:, j : j + m] = lowest(scores(j, j + m), [m - spec.pattern.n] * rows)
        elif not spec.pattern.structured and j % width == 0:
            stop = min(j + width, columns)
            mask[:, j:stop] = block_mask(scores(j, stop), spec, j, stop)
        inverse = inverses[j]
        lost = torch.where(mask[:, j], 0.0, weight[:, j]) / inverse[0, 0]
        weight[:, j:] -= lost[:, None] * inverse[0]
        weight[~mask[:, j], j] = 0.0
    return weight, mask


def block_mask(scores, spec, start, stop):
    """Prune in a block what the columns up to it must have lost."""
    rows, share = len(scores), Fraction(str(spec.sparsity))
    if spec.group == "column":
        return lowest(scores.T, [math.floor(rows * share)] * (stop - start)).T
    size = rows if spec.group == "layer" else 1
    count = math.floor(size * stop * share) - math.floor(size * start * share)
    groups = scores.reshape(1, -1) if spec.group == "layer" else scores
    return lowest(groups, [count] * len(groups)).reshape(scores.shape)


def lowest(groups, counts):
    """Prune the lowest of each group, the lower index first."""
    mask = torch.ones(groups.shape, dtype=torch.bool)
    for row, (group, count) in enumerate(zip(groups.tolist(), counts, strict=True)):
        for place in sorted(range(len(group)), key=group.__getitem__)[:count]:
            mask[row, place] = False
    return mask


@pytest.mark.parametrize(("shape", "spec", "block_size"), CASES, ids=str)
def test_equals_the_oracle(shape, spec, block_size, path):
    weight, moments = correlated(*shape)
    found, mask = sparsegpt(weight, inverse_factor(moments, DAMPING), spec, block_size)
    expected, expected_mask = oracle(weight, moments, spec, block_size)
    assert torch.equal(mask, expected_mask)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("spec", [case[1] for case in CASES], ids=str)
def test_paths_agree(spec, monkeypatch):
    weight, moments = correlated(150, 16 * (spec.pattern.m or 12), seed=3, dead=(5,))
    factor = inverse_factor(moments, DAMPING)
    found, mask = sparsegpt(weight, factor, spec)
    monkeypatch.setattr(selection, "runs_compiled", lambda _: False)
    expected, expected_mask = sparsegpt(weight, factor, spec)
    assert torch.equal(mask, expected_mask)
    assert (found - expected).abs().max() < 1e-4


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.0, 0.01, 0.29, 0.5, 0.7, 0.99, 0.999]),
    st.sampled_from(["layer", "row", "column"]),
    st.sampled_from([FREE, Pattern(2, 4), Pattern(1, 3)]),
    st.integers(1, 50),
)
@settings(deadline=None, max_examples=80)
def test_zeros_are_counted_exactly(shape, sparsity, group, pattern, block_size):
    shape = (shape[0], shape[1] * (pattern.m or 1))
    spec = MaskSpec(sparsity, pattern, group)
    weight, moments = correlated(*shape, dead=(0,))
    found, mask = sparsegpt(weight, inverse_factor(moments, DAMPING), spec, block_size)
    assert int(mask.sum()) == expected_survivors(shape, spec)
    assert found[~mask].count_nonzero() == 0
    if pattern.m is not None:
        assert bool((mask.view(-1, pattern.m).sum(1) == pattern.n).all())
    elif group == "row":
        assert mask.sum(1).unique().numel() == 1


def test_equal_scores_go_by_index(path):
    factor = inverse_factor(torch.eye(8), DAMPING)
    _, mask = sparsegpt(torch.ones(3, 8), factor, MaskSpec(0.5, FREE, "layer"), 4)
    assert mask.int().tolist() == [[0, 0, 0, 0] * 2, [0, 0, 1, 1] * 2, [1, 1, 1, 1] * 2]
    _, mask = sparsegpt(torch.ones(2, 8), factor, MaskSpec(0.25, FREE, "row"), 4)
    assert mask.int().tolist() == [[0, 1, 1, 1] * 2] * 2
    _, mask = sparsegpt(torch.ones(2, 8), factor, MaskSpec(0.0, Pattern(1, 4), "row"))
    assert mask.int().tolist() == [[0, 0, 0, 1] * 2] * 2


@pytest.mark.parametrize("spec", [CASES[0][1], CASES[3][1], CASES[6][1]], ids=str)
def test_dead_inputs_have_no_say(spec, path):
    weight, moments = correlated(9, 24, dead=(2, 3, 17))
    factor = inverse_factor(moments, DAMPING)
    found, mask = sparsegpt(weight, factor, spec, 8)
    assert found[:, [2, 3, 17]].count_nonzero() == 0
    weight[:, [2, 3, 17]] = float("inf")
    again, same = sparsegpt(weight, factor, spec, 8)
    assert torch.equal(found, again)
    assert torch.equal(mask, same)
    expected, _ = oracle(weight, moments, spec, 8, dead=(2, 3, 17))
    assert (found - expected).abs().max() < 1e-4


def test_weights_of_any_dtype_and_stride_are_not_changed(path):
    weight, moments = correlated(20, 24)
    factor, spec = inverse_factor(moments, DAMPING), MaskSpec(0.6, FREE, "layer")
    for given_ in (weight.bfloat16(), weight.double(), torch.nn.Parameter(weight.T.clone()).T):
        before = given_.clone()
        found, mask = sparsegpt(given_, factor, spec, 16)
        expected, expected_mask = sparsegpt(given_.detach().float().clone(), factor, spec, 16)
        assert torch.equal(found, expected)
        assert torch.equal(mask, expected_mask)
        assert torch.equal(given_, before)
        assert not found.requires_grad


def test_scale_of_the_moments_does_not_show(path):
    weight, moments = correlated(20, 24, dead=(1,))
    spec = MaskSpec(0.6, FREE, "layer")
    found = sparsegpt(weight, inverse_factor(moments, DAMPING), spec)
    scaled = sparsegpt(weight, inverse_factor(moments * 2.0**-16, DAMPING), spec)
    assert torch.equal(found[0], scaled[0])
    assert torch.equal(found[1], scaled[1])


def test_block_size_does_not_show_in_patterns(path):
    weight, moments = correlated(20, 60)
    factor, spec = inverse_factor(moments, DAMPING), MaskSpec(0.5, Pattern(2, 4), "row")
    found, mask = sparsegpt(weight, factor, spec, 60)
    for block_size in (1, 6, 16, 1000):
        other, same = sparsegpt(weight, factor, spec, block_size)
        assert torch.equal(mask, same)
        assert (found - other).abs().max() < 1e-4


def test_sparsity_of_zero_changes_nothing(path):
    weight, moments = correlated(6, 10)
    found, mask = sparsegpt(weight, inverse_factor(moments, DAMPING), MaskSpec(0.0, FREE, "row"))
    assert torch.equal(found, weight)
    assert bool(mask.all())


@pytest.mark.parametrize("spec", [CASES[0][1], CASES[6][1]], ids=str)
def test_weights_that_are_no_numbers(spec, path):
    weight, moments = correlated(6, 16)
    weight[3, 9] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinite"):
        sparsegpt(weight, inverse_factor(moments, DAMPING), spec)


def test_pattern_that_does_not_divide():
    weight, moments = correlated(3, 6)
    with pytest.raises(ModelError, match="divisible by 4, got 6"):
        sparsegpt(weight, inverse_factor(moments, 0.01), MaskSpec(0.5, Pattern(2, 4), "row"))


@given(st.integers(1, 12), st.integers(1, 40), st.floats(0, 1), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_compiled_counts_equal_the_sort(groups, size, share, seed):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (groups, size), generator=rng).float()
    count = round(share * size)
    assert torch.equal(prune_count(scores, count), selection.prune_count(scores, count))


JOINT = [
    ((4, 64), MaskSpec(0.5, FREE, "layer"), Grid(4, 32, True), 32, torch.float32),
    ((4, 64), MaskSpec(0.5, FREE, "row"), Grid(4, 32, False), 64, torch.bfloat16),
    ((5, 40), MaskSpec(0.6, FREE, "layer"), Grid(4, None, True), 16, torch.float32),
    ((3, 64), MaskSpec(0.5, Pattern(2, 4), "layer"), Grid(4, 32, False), 128, torch.float32),
    ((3, 40), MaskSpec(0.5, Pattern(1, 4), "row"), Grid(8, None, False), 8, torch.float32),
]


@pytest.mark.parametrize(("shape", "spec", "grid", "block_size", "dtype"), JOINT, ids=str)
def test_joint_equals_the_oracle(shape, spec, grid, block_size, dtype, path):
    weight, moments = correlated(*shape)
    weight = weight.to(dtype)
    factor = inverse_factor(moments, DAMPING)
    found = sparsegpt_quantized(weight, factor, spec, grid, block_size)
    hessian, columns = damped64(moments, DAMPING), shape[1]
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    mask = torch.ones(shape, dtype=torch.bool)

    def keep(j, work):
        m = spec.pattern.m or block_size
        if j % m == 0:
            stop = min(j + m, columns)
            costs = torch.stack([inverse[0, 0] for inverse in inverses[j:stop]])
            # Those of the part that already make up for what came before.
            scores = work[:, j:stop].square() / costs
            if spec.pattern.structured:
                mask[:, j:stop] = lowest(scores, [m - spec.pattern.n] * len(mask))
            else:
                mask[:, j:stop] = block_mask(scores, spec, j, stop)
        return mask[:, j].tolist()

    size = grid.group_size or columns
    codes, _, zeros = swept(weight, inverses, (grid.bits, size, grid.symmetric), keep)
    assert torch.equal(torch.from_numpy(found.mask.to_bool()), mask)
    assert torch.equal(found.codes, codes)
    assert found.mask.survivors == expected_survivors(shape, spec)
    assert not found.dense()[~mask].any()


def test_joint_without_zeros_is_gptq_and_with_fine_codes_is_sparsegpt(path):
    weight, moments = correlated(24, 128)
    factor, grid = inverse_factor(moments, DAMPING), Grid(4, 32, True)
    found = sparsegpt_quantized(weight, factor, MaskSpec(0.0, FREE, "row"), grid)
    assert found == gptq(weight, factor, grid)
    spec = MaskSpec(0.5, FREE, "layer")
    fine = sparsegpt_quantized(weight, factor, spec, Grid(8, 32, False))
    plain, mask = sparsegpt(weight, factor, spec)
    same = torch.from_numpy(fine.mask.to_bool()) == mask
    assert same.float().mean() > 0.99
    both = reconstruction_error(weight, fine.dense(), moments)
    assert both < 1.15 * reconstruction_error(weight, plain, moments)


def test_joint_makes_up_for_both(path):
    weight, moments = correlated(64, 128)
    spec, grid = MaskSpec(0.5, FREE, "layer"), Grid(4, 32, True)
    known = MomentStatistics(moments, 9)
    joint = SparseGptPruner(DAMPING, 128, grid).prune(weight, known, spec)
    pruned = SparseGptPruner(DAMPING, 128).prune(weight, known, spec).dense()
    after = gptq(pruned, inverse_factor(torch.eye(128), DAMPING), grid).dense()  # rounds alone
    assert reconstruction_error(weight, joint.dense(), moments) < reconstruction_error(
        weight, after, moments
    )


def test_a_pattern_across_groups_is_refused():
    weight, moments = correlated(3, 160)
    factor, spec = inverse_factor(moments, DAMPING), MaskSpec(0.5, Pattern(3, 5), "row")
    with pytest.raises(ModelError, match="multiple of 5 with pattern '3:5', got 32"):
        sparsegpt_quantized(weight, factor, spec, Grid(4, 32, True))
    assert sparsegpt_quantized(weight, factor, spec, Grid(4, None, True)).group_size == 160
