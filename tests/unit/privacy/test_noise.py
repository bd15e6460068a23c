"""Whole numbers of limited length, noise on them, and what it buys."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import ConfigError
from fedprune.privacy.noise import (
    NORM_BITS,
    Guarantee,
    clipped,
    discrete_gaussian,
    noise_multiplier,
    own_scale,
    part_norm,
    spent_epsilon,
    unit,
)

pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
pytest.importorskip("opendp", reason="opendp is not installed")


def _squares(values) -> int:
    return sum(int(value) ** 2 for value in values)


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=40), st.integers(1, 1 << 24))
@settings(max_examples=300, deadline=None)
def test_no_vector_is_longer_than_its_part(values, norm):
    found = clipped(np.array(values), norm)
    assert _squares(found) <= norm * norm  # in exact integers
    assert found.min() >= 0


def test_a_short_vector_stays_and_a_long_one_keeps_its_direction():
    short = np.array([3.7, 0.0, 4.2])
    assert clipped(short, 100).tolist() == [3, 0, 4]
    long = np.array([3e6, 0.0, 4e6])
    assert clipped(long, 1000).tolist() in ([599, 0, 799], [600, 0, 800])


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_parts_together_are_never_longer_than_the_whole(columns):
    total = sum(columns)
    assert _squares(part_norm(one, total) for one in columns) <= 1 << 2 * NORM_BITS


def test_a_sample_like_public_text_is_not_clipped():
    total, columns = 10_000, 300
    usual = np.full(columns, unit(total, clip=1.25))
    assert clipped(usual, part_norm(columns, total)).tolist() == [int(usual[0])] * columns


def test_noise_has_the_width_that_was_asked_for():
    count, width = 20_000, 1 << 20
    drawn = discrete_gaussian(count, width).astype(np.float64)
    # Of n normal numbers the mean square scatters by sqrt(2 / n), their mean by 1 / sqrt(n): eight
    # times that is exceeded less often than once in 10**12 runs.
    assert abs(np.square(drawn).mean() / width**2 - 1) < 8 * math.sqrt(2 / count)
    assert abs(drawn.mean()) < 8 * width / math.sqrt(count)
    assert not np.array_equal(drawn, discrete_gaussian(count, width))


def test_narrow_noise_is_the_discrete_gaussian():
    count, scale = 20_000, 1.5
    drawn = discrete_gaussian(count, scale)
    weights = {k: math.exp(-k * k / (2 * scale**2)) for k in range(-30, 31)}
    total = sum(weights.values())
    for value in range(-3, 4):
        chance = weights[value] / total
        scatter = math.sqrt(chance * (1 - chance) / count)
        assert abs((drawn == value).mean() - chance) < 8 * scatter


def test_shares_of_noise_add_up_to_the_width_of_one():
    count, clients, width = 4000, 9, float(1 << 22)
    total = sum(discrete_gaussian(count, own_scale(width, clients)) for _ in range(clients))
    assert abs(np.square(total.astype(float)).mean() / width**2 - 1) < 8 * math.sqrt(2 / count)


def test_shares_too_narrow_are_refused():
    with pytest.raises(ConfigError, match=r"privacy\.min_cohort"):
        own_scale(1000.0, 1000)


def _exact_gaussian_delta(multiplier: float, epsilon: float) -> float:
    """Balle and Wang (arXiv 1805.06530), theorem 8."""
    a, b = 1 / (2 * multiplier), epsilon * multiplier
    normal = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
    return normal(a - b) - math.exp(epsilon) * normal(-a - b)


@pytest.mark.parametrize("epsilon", [0.5, 1, 8, 20])
@pytest.mark.parametrize("delta", [1e-5, 1e-6])
def test_noise_is_enough_and_not_much_too_much(epsilon, delta):
    multiplier = noise_multiplier(epsilon, delta)
    # The exact condition for one Gaussian holds...
    assert _exact_gaussian_delta(multiplier, epsilon) <= delta
    # ... and the bound by Renyi divergences costs less than a quarter of noise.
    assert _exact_gaussian_delta(multiplier * 0.75, epsilon) > delta
    # Never worse than the textbook's conversion of rho-zCDP.
    rho = 1 / (2 * multiplier**2)
    assert spent_epsilon(multiplier, delta) <= rho + 2 * math.sqrt(rho * math.log(1 / delta)) + 1e-9
    assert spent_epsilon(multiplier, delta) <= epsilon


def test_many_releases_cost_what_their_joint_length_costs():
    dp = pytest.importorskip("dp_accounting")
    from dp_accounting import rdp

    blocks, multiplier, delta = 32, 0.7, 1e-6
    accountant = rdp.RdpAccountant()
    # Each of the blocks has a share 1 / sqrt(blocks) of the length, under the same noise.
    accountant.compose(dp.GaussianDpEvent(multiplier * math.sqrt(blocks)), blocks)
    assert accountant.get_epsilon(delta) == pytest.approx(spent_epsilon(multiplier, delta))


def test_a_sample_that_is_replaced_costs_more():
    found = Guarantee.of(8.0, 1e-6, 1)
    assert found.replaced_epsilon == spent_epsilon(found.multiplier / math.sqrt(2), 1e-6)
    assert found.epsilon < found.replaced_epsilon < 16
