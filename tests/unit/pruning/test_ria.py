"""RIA against its formula in exact sums, and masks on both CPU paths."""

import math

import numpy as np
import pytest
import torch

from fedprune.config.pattern import Pattern
from fedprune.pruning import ria
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.registry import get_pruner
from fedprune.pruning.ria import ria_scores
from fedprune.pruning.statistics import ColumnStatistics
from tests.support.pruning_oracle import expected_survivors, oracle_mask
from tests.support.pruning_paths import PATHS, take_path

SPECS = [
    MaskSpec(0.5, Pattern(), "layer"),
    MaskSpec(0.7, Pattern(), "row"),
    MaskSpec(0.3, Pattern(), "column"),
    MaskSpec(0.5, Pattern(2, 4), "layer"),
    MaskSpec(0.5, Pattern(1, 5), "layer"),
]
SHAPE = (17, 40)


def oracle_scores(weight, norms):
    """Return (|W|/row sum + |W|/column sum) * norm**0.5, weight by weight; zero sums give zero."""
    size = np.abs(weight)
    rows = [np.float32(math.fsum(row)) for row in size.tolist()]
    columns = [np.float32(math.fsum(column)) for column in size.T.tolist()]
    scores = np.zeros(size.shape, dtype=np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if size[i, j] > 0:
                share = np.float32(size[i, j] / row) + np.float32(size[i, j] / column)
                scores[i, j] = np.float32(share) * np.float32(np.sqrt(norms[j]))
    return scores


@pytest.fixture
def weight():
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    weight[3] = 0.0
    weight[:, 7] = 0.0
    return weight


@pytest.fixture
def stats():
    inputs = torch.randn(50, SHAPE[1], generator=torch.Generator().manual_seed(6)).exp()
    inputs[:, 9] = 0.0
    return ColumnStatistics(inputs.square().sum(0), 50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_equal_the_formula_bit_for_bit(weight, stats, dtype):
    weight = weight.to(dtype)
    expected = oracle_scores(weight.float().numpy(), stats.norms.numpy())
    assert np.array_equal(ria_scores(weight, stats.norms).numpy(), expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_masks_equal_the_oracle(weight, stats, spec, path, monkeypatch):
    take_path(monkeypatch, path)
    found = get_pruner("ria").prune(weight, stats, spec)
    scores = oracle_scores(weight.numpy(), stats.norms.numpy())
    assert np.array_equal(found.to_bool(), oracle_mask(scores, spec))
    assert found.survivors == expected_survivors(SHAPE, spec)


def test_a_matrix_of_zeros_scores_zero():
    assert ria_scores(torch.zeros(3, 4), torch.ones(4)).tolist() == [[0.0] * 4] * 3


def test_steps_and_strides_do_not_show(weight, stats, monkeypatch):
    expected = ria_scores(weight, stats.norms)
    monkeypatch.setattr(ria, "_BLOCK", 1)
    assert torch.equal(ria_scores(weight, stats.norms), expected)
    transposed = torch.nn.Parameter(weight.t().clone()).t()
    assert torch.equal(ria_scores(transposed, stats.norms), expected)
