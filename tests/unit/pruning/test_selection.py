"""Selection by tensor operations against a sort of every group."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.selection import prune_lowest
from tests.support.pruning_oracle import expected_survivors, oracle_mask

FREE = Pattern()


@st.composite
def cases(draw):
    spec = MaskSpec(
        draw(st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.99])),
        draw(st.sampled_from([FREE, FREE, Pattern(2, 4), Pattern(1, 4), Pattern(5, 8)])),
        draw(st.sampled_from(["layer", "row", "column"])),
    )
    columns = draw(st.integers(1, 12)) * (spec.pattern.m or 1)
    shape = (draw(st.integers(1, 6)), columns)
    values = draw(st.integers(1, 20))  # few: many ties
    seed = draw(st.integers(0, 2**31))
    scores = np.random.default_rng(seed).integers(0, values, shape).astype(np.float32)
    return scores, spec


@given(cases())
def test_equals_the_oracle(case):
    scores, spec = case
    mask = prune_lowest(torch.from_numpy(scores), spec)
    assert mask.dtype == torch.bool
    assert np.array_equal(mask.numpy(), oracle_mask(scores, spec))
    assert int(mask.sum()) == expected_survivors(scores.shape, spec)


def test_equal_scores_prune_the_lower_index_first():
    scores = torch.ones(2, 6)
    row = prune_lowest(scores, MaskSpec(0.5, FREE, "row"))
    assert row.tolist() == [[False] * 3 + [True] * 3] * 2
    layer = prune_lowest(scores, MaskSpec(0.5, FREE, "layer"))
    assert layer.tolist() == [[False] * 6, [True] * 6]
    column = prune_lowest(scores, MaskSpec(0.5, FREE, "column"))
    assert column.tolist() == [[False] * 6, [True] * 6]
    nm = prune_lowest(scores, MaskSpec(0.5, Pattern(1, 3), "row"))
    assert nm.tolist() == [[False, False, True] * 2] * 2


def test_pattern_that_does_not_divide():
    with pytest.raises(ModelError, match="divisible by 4, got 6"):
        prune_lowest(torch.ones(2, 6), MaskSpec(0.5, Pattern(2, 4), "row"))
