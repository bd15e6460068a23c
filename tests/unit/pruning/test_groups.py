"""Counts of pruned weights, in decimal."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern, pruned_count
from fedprune.errors import ConfigError, ModelError
from fedprune.pruning.groups import MaskSpec, check_divides
from tests.support.pruning_oracle import expected_survivors


@pytest.mark.parametrize(
    ("size", "sparsity", "count"),
    [
        (10, 0.7, 7),
        (30, 0.1, 3),
        (100, 0.29, 29),  # int(100 * 0.29) is 28
        (100, 0.57, 57),
        (1000, 0.001, 1),
        (4096, 0.5, 2048),
        (7, 0.5, 3),
        (10, 0.0, 0),
        (1, 0.99, 0),
        (235_000_000_000, 0.3, 70_500_000_000),
    ],
)
def test_known_counts(size, sparsity, count):
    assert pruned_count(size, sparsity) == count


@given(st.integers(1, 10**7), st.integers(0, 999))
def test_every_sparsity_of_three_decimals(size, thousandths):
    assert pruned_count(size, thousandths / 1000) == size * thousandths // 1000


@given(st.integers(1, 10**7), st.floats(0, 1, exclude_max=True))
def test_any_sparsity_leaves_a_weight_and_is_the_floor(size, sparsity):
    count = pruned_count(size, sparsity)
    assert 0 <= count < size
    assert count <= size * Fraction(str(sparsity)) < count + 1


@pytest.mark.parametrize(
    ("size", "sparsity", "count"),
    [(10, 0.7, 7), (100, 0.57, 57), (7, 0.5, 4), (10, 0.0, 0), (1, 0.01, 1), (1000, 0.0011, 2)],
)
def test_counts_rounded_up(size, sparsity, count):
    assert pruned_count(size, sparsity, "ceil") == count


@given(st.integers(1, 10**7), st.floats(0, 1, exclude_max=True))
def test_rounding_up_is_the_ceiling(size, sparsity):
    count = pruned_count(size, sparsity, "ceil")
    assert count - 1 < size * Fraction(str(sparsity)) <= count


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
