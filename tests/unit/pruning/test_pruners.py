"""Pruners: what they score, and that every path gives the same mask."""

import numpy as np
import pytest
import torch

from fedprune.config.pattern import Pattern
from fedprune.errors import ConfigError, ModelError
from fedprune.pruning import selection
from fedprune.pruning.grid import Grid
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.registry import NAMES, get_pruner
from fedprune.pruning.statistics import ColumnStatistics
from tests.support.pruning_oracle import expected_survivors, oracle_mask

SPECS = [
    MaskSpec(0.5, Pattern(), "row"),
    MaskSpec(0.7, Pattern(), "layer"),
    MaskSpec(0.3, Pattern(), "column"),
    MaskSpec(0.5, Pattern(2, 4), "row"),
]


@pytest.fixture
def weight():
    return torch.randn(13, 20, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def stats():
    inputs = torch.randn(50, 20, generator=torch.Generator().manual_seed(6)).exp()
    inputs[:, 3] = 0.0
    return ColumnStatistics(inputs.square().sum(0), 50)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_wanda(weight, stats, spec, dtype):
    weight = weight.to(dtype)
    found = get_pruner("wanda").prune(weight, stats, spec)
    scores = np.abs(weight.float().numpy()) * np.sqrt(stats.sum_squares.numpy())
    assert np.array_equal(found.to_bool(), oracle_mask(scores, spec))
    assert found.survivors == expected_survivors((13, 20), spec)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_magnitude(weight, spec):
    found = get_pruner("magnitude").prune(weight, None, spec)
    assert np.array_equal(found.to_bool(), oracle_mask(np.abs(weight.numpy()), spec))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("name", ["wanda", "ria"])
def test_parameters_are_accepted_and_not_changed(weight, stats, name):
    parameter = torch.nn.Parameter(weight.clone())
    get_pruner(name).prune(parameter, stats, SPECS[0])
    assert torch.equal(parameter, weight)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["magnitude", "wanda", "ria"])
def test_scores_that_are_no_numbers(weight, stats, name, bad):
    weight[12, 19] = bad
    with pytest.raises(ModelError, match="NaN or infinite"):
        get_pruner(name).prune(weight, stats, SPECS[0])


@pytest.mark.parametrize("name", ["wanda", "ria"])
def test_statistics_are_needed_and_checked(weight, name):
    with pytest.raises(ModelError, match=f"'{name}' needs statistics"):
        get_pruner(name).prune(weight, None, SPECS[0])
    with pytest.raises(ModelError, match=rf"'{name}' needs .* of 20 inputs, got shape \(13,\)"):
        get_pruner(name).prune(weight, ColumnStatistics(torch.ones(13), 1), SPECS[0])


def test_statistics_are_additive_and_norms_their_roots():
    stats = ColumnStatistics(torch.tensor([4.0, 0.0, 9.0]), 7)
    assert stats.norms.tolist() == [2.0, 0.0, 3.0]


def test_paths_by_device(weight):
    assert selection.runs_compiled(weight)
    assert not selection.runs_compiled(weight.to("meta"))


def test_registry():
    pruners = {name: get_pruner(name, grid=Grid(4, 128, True)) for name in NAMES}
    found = {name: (pruner.needs, pruner.updates) for name, pruner in pruners.items()}
    assert found == {
        "magnitude": ("nothing", False),
        "wanda": ("columns", False),
        "ria": ("columns", False),
        "sparsegpt": ("moments", True),
        "alps": ("moments", True),
        "sparseswaps": ("moments", True),
        "gptq": ("moments", True),
        "rounding": ("columns", True),
    }
    assert all(pruner.name == name for name, pruner in pruners.items())


def test_unknown_pruner():
    with pytest.raises(ConfigError, match="`pruner.name` must be one of 'magnitude', 'wanda', "):
        get_pruner("wand")
    with pytest.raises(ConfigError, match="`pruner.bits` must be 4 or 8 with pruner=gptq"):
        get_pruner("gptq")
