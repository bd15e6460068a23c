"""Counts of pruned weights, in decimal."""

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern, pruned_count
from fedprune.errors import ConfigError, ModelError
from fedprune.pruning.groups import MaskSpec, check_divides
from tests.support.pruning_oracle import expected_survivors

DECIMALS = st.integers(0, 999).map(lambda number: number / 1000)


@given(st.integers(1, 10**7), DECIMALS | st.floats(0, 1, exclude_max=True))
@example(100, 0.29)  # int(100 * 0.29) is 28
@example(235_000_000_000, 0.3)
@example(1, 0.99)
def test_counts_are_the_floor_and_the_ceiling_of_the_decimal_share(size, sparsity):
    exact = size * Fraction(str(sparsity))
    assert pruned_count(size, sparsity) == floor(exact) < size
    assert pruned_count(size, sparsity, "ceil") == ceil(exact)


@pytest.mark.parametrize(
    ("pattern", "group", "expected"),
    [
        ("unstructured", "layer", 60 - 42),
        ("unstructured", "row", 5 * (12 - 8)),
        ("unstructured", "column", 12 * (5 - 3)),
        ("2:4", "row", 30),
        ("1:4", "layer", 15),
        ("5:6", "column", 50),
    ],
)
def test_expected_survivors(pattern, group, expected):
    assert expected_survivors((5, 12), MaskSpec(0.7, Pattern.parse(pattern), group)) == expected


def test_pattern_must_divide():
    with pytest.raises(ModelError, match="'2:4' needs d_in divisible by 4, got 10"):
        check_divides(Pattern(2, 4), 10)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, float("nan")])
def test_sparsity_out_of_range(sparsity):
    with pytest.raises(ConfigError, match="`sparsity` must be at least 0 and below 1"):
        MaskSpec(sparsity, Pattern(), "row")


def test_unknown_group():
    with pytest.raises(ConfigError, match="`pruner.group` must be .* got 'rows'"):
        MaskSpec(0.5, Pattern(), "rows")
