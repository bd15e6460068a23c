"""Members told from others, against pairs counted one by one and the known normal case."""

import math

import numpy as np
import pytest

from fedprune.privacy.membership import area, likelihood_ratios, separation


def test_area_counts_pairs():
    draw = np.random.default_rng(0)
    members, others = draw.integers(0, 6, 13).astype(float), draw.integers(0, 5, 9).astype(float)
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    assert area(members, others) == pytest.approx(sum(pairs) / len(pairs))


def slow_ratio(released, document, background, members):
    """Log density of the mean with the document in it, less that without, column by column."""
    total = 0.0
    for seen, own, column in zip(released, document, background.T, strict=True):
        usual, variance = column.mean(), column.var(ddof=1)
        inside = usual + (own - usual) / members
        total += (-((seen - inside) ** 2) + (seen - usual) ** 2) / (2 * variance / members)
    return total


def test_ratios_are_those_of_normal_densities():
    draw = np.random.default_rng(1)
    background, documents = draw.random((30, 5)), draw.random((4, 5))
    released = draw.random(5)
    found = likelihood_ratios(released, documents, background, 7)
    expected = [slow_ratio(released, one, background, 7) for one in documents]
    assert found == pytest.approx(expected)


def test_a_column_that_never_changes_says_nothing():
    draw = np.random.default_rng(2)
    background, documents = draw.random((9, 3)), draw.random((2, 3))
    still = [np.hstack([part, np.ones((len(part), 1))]) for part in (background, documents)]
    plain = likelihood_ratios(np.zeros(3), documents, background, 4)
    assert likelihood_ratios(np.zeros(4), still[1], still[0], 4) == pytest.approx(plain)


@pytest.mark.parametrize(("members", "least", "most"), [(4, 0.99, 1.0), (400, 0.5, 0.75)])
def test_many_members_hide_each(members, least, most):
    draw = np.random.default_rng(3)
    inside, outside, background = (draw.standard_normal((members, 40)) for _ in range(3))
    background = draw.standard_normal((400, 40))
    outside = draw.standard_normal((200, 40))
    released = inside.mean(0)
    scores = [likelihood_ratios(released, d, background, members) for d in (inside, outside)]
    found = separation(*scores)
    assert least <= found.auc <= most
    assert found.low <= found.auc <= found.high and not math.isnan(found.low)
    # Normal theory: distance sqrt(numbers / members) between the two, in their common spread.
    distance = math.sqrt(40 / members)
    expected = 0.5 * (1 + math.erf(distance / 2))
    assert found.auc == pytest.approx(expected, abs=0.06)


def test_an_interval_is_the_same_for_the_same_seed():
    draw = np.random.default_rng(4)
    scores = draw.random(20), draw.random(20)
    assert separation(*scores, seed=5) == separation(*scores, seed=5)
    assert separation(*scores, seed=5) != separation(*scores, seed=6)
