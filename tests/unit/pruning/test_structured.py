"""Units are chosen and the matrix after them repaired as brute force does it on raw inputs."""

import itertools

import numpy as np
import pytest
import torch

from fedprune.errors import ModelError
from fedprune.pruning.statistics import MomentStatistics
from fedprune.pruning.structured import StructuredPruner, cheapest_units, smallest_units, units_kept
from fedprune.pruning.units import Units


def units(count, size=1, linear="down"):
    return Units(
        linear, np.arange(count * size).reshape(count, size), {"up": np.arange(count)[:, None]}
    )


def problem(d_out, d_in, tokens=400, seed=0):
    """Correlated inputs, their moments and a weight, in float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d_in, d_in, generator=generator, dtype=torch.float64) / 3
    inputs = torch.randn(tokens, d_in, generator=generator, dtype=torch.float64)
    inputs = inputs @ (torch.eye(d_in, dtype=torch.float64) + mixing)
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    return weight, inputs, (inputs.T @ inputs)


def fitted(weight, inputs, columns):
    """Least squares on the raw inputs: the weight on some columns that makes the same outputs."""
    return torch.linalg.lstsq(inputs[:, columns], inputs @ weight.T, driver="gelsd").solution.T


def loss(weight, inputs, columns):
    outputs = inputs[:, columns] @ fitted(weight, inputs, columns).T
    return float((inputs @ weight.T - outputs).square().sum())


@pytest.mark.parametrize("size", [1, 2])
def test_the_weight_is_repaired_as_least_squares_on_the_raw_inputs_say(size):
    weight, inputs, moments = problem(5, 8)
    columns = np.arange(8).reshape(-1, size)
    new, kept = cheapest_units(weight, moments.float(), columns, 4 // size, damping=1e-9)
    remaining = columns[kept].reshape(-1)
    torch.testing.assert_close(
        new[:, remaining].double(), fitted(weight, inputs, remaining), rtol=1e-4, atol=1e-5
    )
    gone = np.setdiff1d(np.arange(8), remaining)
    assert not new[:, gone].any()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_units_go_one_by_one_where_brute_force_finds_the_least_loss(size, seed):
    weight, inputs, moments = problem(5, 8, seed=seed)
    columns = np.arange(8).reshape(-1, size)
    alive = list(range(len(columns)))
    for kept in range(len(columns) - 1, 0, -1):
        losses = {
            gone: loss(weight, inputs, columns[[u for u in alive if u != gone]].reshape(-1))
            for gone in alive
        }
        alive.remove(min(losses, key=losses.get))
        _, found = cheapest_units(weight, moments.float(), columns, kept, damping=1e-9)
        assert found.tolist() == alive


def test_it_is_hardly_worse_than_the_best_of_all_choices():
    weight, inputs, moments = problem(5, 8, seed=2)
    best = min(loss(weight, inputs, list(some)) for some in itertools.combinations(range(8), 5))
    _, kept = cheapest_units(weight, moments.float(), np.arange(8)[:, None], 5, 1e-9)
    assert loss(weight, inputs, kept) <= 1.2 * best


def test_without_repair_those_go_that_contribute_least():
    weight, inputs, moments = problem(5, 6)
    columns = np.array([[0, 3], [1, 4], [2, 5]])
    sizes = [float((inputs[:, unit] @ weight[:, unit].T).square().sum()) for unit in columns]
    new, kept = smallest_units(weight, moments, columns, 1)
    assert kept.tolist() == [int(np.argmax(sizes))]
    expected = torch.zeros(5, 6, dtype=torch.float64)
    expected[:, columns[kept[0]]] = weight[:, columns[kept[0]]]
    assert torch.equal(new, expected.float())


def test_inputs_that_nobody_saw_go_first():
    weight, _, moments = problem(5, 8)
    moments[[2, 6]], moments[:, [2, 6]] = 0.0, 0.0
    weight[:, 2] = 100.0
    new, kept = cheapest_units(weight, moments.float(), np.arange(8)[:, None], 6, 0.01)
    assert kept.tolist() == [0, 1, 3, 4, 5, 7]
    torch.testing.assert_close(new[:, kept].double(), weight[:, kept], rtol=1e-4, atol=1e-4)


def test_moments_of_few_tokens_are_damped():
    weight, inputs, _ = problem(5, 40, tokens=10)
    new, kept = cheapest_units(
        weight, (inputs.T @ inputs).float(), np.arange(40)[:, None], 20, 0.01
    )
    assert len(kept) == 20
    assert torch.isfinite(new).all()


@pytest.mark.parametrize(
    ("count", "size", "sparsity", "multiple", "kept"),
    [(48, 1, 0.25, 8, 40), (48, 1, 0.5, 8, 24), (172, 1, 0.25, 8, 136), (172, 1, 0.25, 128, 0)]
    + [(8, 16, 0.25, 8, 6), (4, 6, 0.5, 8, 0), (9, 4, 0.5, 8, 6), (1024, 1, 0.3, 128, 768)],
)
def test_the_width_that_remains_is_a_multiple(count, size, sparsity, multiple, kept):
    if kept:
        assert units_kept(units(count, size), sparsity, multiple) == kept
    else:
        with pytest.raises(ModelError, match="removes none of the .* units"):
            units_kept(units(count, size), sparsity, multiple)


def test_what_is_said_of_a_sparsity_that_removes_nothing_helps():
    with pytest.raises(ModelError, match=r"Set sparsity=0\.167") as caught:
        units_kept(units(48), 0.1, 8)
    assert "`pruner.multiple`" in str(caught.value)
    assert units_kept(units(48), 0.167, 8) == 40
    with pytest.raises(ModelError, match=r"unit has 1\. Lower `pruner.multiple`"):
        units_kept(units(48), 0.9, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("repair", [True, False])
def test_changes_are_columns_after_and_rows_before(dtype, repair):
    weight, _, moments = problem(5, 16)
    weights = {"up": torch.randn(16, 4).to(dtype), "down": weight.to(dtype)}
    weights["other"] = torch.randn(3, 4).to(dtype)
    pruner = StructuredPruner("ffn", 8, repair, 0.01)
    stats = MomentStatistics(moments.float(), 400)
    changes = pruner.prune_units(weights, stats, units(16), 0.5)
    down = changes["down"].mask.to_bool()
    assert changes["down"].values.dtype == dtype
    assert (down.all(0) | ~down.any(0)).all()
    assert down.any(0).sum() == 8
    assert (changes["up"].to_bool().all(1) == down.any(0)).all()
    assert (changes["up"].to_bool().any(1) == down.any(0)).all()
    assert changes["other"].sparsity == 0


def test_moments_that_are_missing_or_others_are_refused():
    weights = {"up": torch.randn(16, 4), "down": torch.randn(5, 16)}
    pruner = StructuredPruner("ffn", 8, True, 0.01)
    for stats in (None, MomentStatistics(torch.eye(4), 3)):
        with pytest.raises(ModelError, match="needs"):
            pruner.prune_units(weights, stats, units(16), 0.5)
    with pytest.raises(ModelError, match="NaN or infinite"):
        stats = MomentStatistics(torch.full((16, 16), torch.nan), 3)
        pruner.prune_units(weights, stats, units(16), 0.5)
