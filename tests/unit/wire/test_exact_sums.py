"""Exact sums against rational arithmetic: no order, no split, no rounding shows."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.sums import ExactSums

UNIT = Fraction(1, 2**64)
LIMIT = Fraction(2**64) - UNIT
COLUMNS = 3
NUMBERS = st.floats(0, 2**63, exclude_max=True, width=32)
ROWS = st.lists(st.lists(NUMBERS, min_size=COLUMNS, max_size=COLUMNS), max_size=8)


def oracle(rows):
    """Each number cut to whole units by itself, then added as fractions."""
    sums = [Fraction(0)] * COLUMNS
    for row in rows:
        sums = [
            min(total + floor(Fraction(float(one)) / UNIT) * UNIT, LIMIT)
            for total, one in zip(sums, row, strict=True)
        ]
    return sums


def added(rows, size=COLUMNS):
    sums = ExactSums(size)
    for row in rows:
        sums.add(np.array(row, dtype=np.float32))
    return sums


def fractions(sums):
    return [
        sum(int(limb[column]) * 2 ** (32 * place) for place, limb in enumerate(sums.limbs)) * UNIT
        for column in range(sums.size)
    ]


def nearest(exact, kind):
    """The nearest of the neighbours of a first guess; the even one of two."""
    guess = kind(float(exact))
    near = {guess, np.nextafter(guess, kind(np.inf)), np.nextafter(guess, kind(0))}
    even = {one: int(one.view(f"u{one.itemsize}")) % 2 for one in near}
    return min(near, key=lambda one: (abs(Fraction(float(one)) - exact), even[one]))


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_sums_are_those_of_fractions(rows):
    sums, exact = added(rows), oracle(rows)
    high, low = sums.words()
    assert [(int(h) << 64 | int(w)) * UNIT for h, w in zip(high, low, strict=True)] == exact
    assert fractions(sums) == exact
    for found, kind in ((sums.to_float32(), np.float32), (sums.to_float64(), np.float64)):
        assert found.dtype == kind
        assert found.tolist() == [nearest(one, kind) for one in exact]


@settings(max_examples=100, deadline=None)
@given(ROWS, st.permutations(range(8)), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_no_order_and_no_split_shows(rows, order, owners):
    clients = [ExactSums(COLUMNS) for _ in range(4)]
    for place in order:
        if place < len(rows):
            clients[owners[place]].add(np.array(rows[place], dtype=np.float32))
    total = ExactSums(COLUMNS)
    for client in reversed(clients):
        total.merge(client)
    assert total == added(rows)
    assert total.to_float32().tobytes() == added(rows).to_float32().tobytes()


def test_float_sums_would_show_the_order():
    rows = np.random.default_rng(0).lognormal(0, 2, (64, 100)).astype(np.float32)
    assert not np.array_equal(np.cumsum(rows, axis=0)[-1], np.cumsum(rows[::-1], axis=0)[-1])
    assert added(rows, 100) == added(rows[::-1], 100)


def test_halfway_cases_round_to_even_and_a_single_unit_decides():
    one, half_ulp, tiny = 1.0, 2.0**-24, 2.0**-64
    for rows, expected in (
        ([one, half_ulp], 1.0),
        ([one, half_ulp, tiny], 1 + 2.0**-23),
        ([1 + 2.0**-23, half_ulp], 1 + 2.0**-22),
        ([2.0**40, 2.0**16, tiny], 2.0**40 + 2.0**17),
        ([2.0**40, 2.0**16], 2.0**40),
    ):
        sums = added([[value] for value in rows], size=1)
        assert sums.to_float32().tolist() == [expected]


def test_what_is_below_the_unit_is_cut_from_each_number():
    sums = added([[2.0**-65, 2.0**-64 * 1.5, 2.0**-149]] * 4)
    assert fractions(sums) == [0, 4 * UNIT, 0]


def test_carries_are_made_before_a_limb_is_full():
    sums = added([[2.0**32 - 2.0**8]], size=1)  # all that a digit can have of a float32
    expected = Fraction(2**32 - 2**8)
    for _ in range(40):  # 2**40 terms: more than can wait
        other = ExactSums(1)
        other.merge(sums)
        sums.merge(other)
        expected = min(2 * expected, LIMIT)
        assert (sums.limbs >= 0).all()
        assert sums.to_float64().tolist() == [float(expected)]


def test_sums_end_at_their_limit_in_any_order():
    large = np.float32(2.0**63 - 2.0**39)
    sums = added([[large, 1, 0]] * 3)
    assert fractions(sums)[1:] == [3, 0]
    assert sums.words()[0][0] == sums.words()[1][0] == 2**64 - 1
    assert sums.to_float32()[0] == 2.0**64
    assert added([[large, 0, 0], [large, 0, 0]]) != sums


def test_from_words_is_the_inverse_of_words():
    sums = added([[3.25, 2.0**40, 2.0**-60]])
    assert ExactSums.from_words(*sums.words()) == sums
    assert ExactSums.from_words(*sums.words()).limbs.tolist() == sums.limbs.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, -1e-45, 2.0**63])
def test_numbers_that_have_no_exact_place_change_nothing(value):
    sums = added([[1, 2, 3]])
    with pytest.raises(WireError, match="numbers from 0 to 2"):
        sums.add(np.array([1, value, 1], dtype=np.float32))
    assert sums == added([[1, 2, 3]])


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros(4, np.float32), np.zeros((3, 1), "f4")])
def test_vectors_of_another_kind_are_refused(values):
    with pytest.raises(WireError, match="3 columns take as many float32"):
        ExactSums(3).add(values)


def test_sums_of_other_columns_do_not_merge():
    with pytest.raises(WireError, match="3 and of 4 columns"):
        ExactSums(3).merge(ExactSums(4))
    assert ExactSums(3) != ExactSums(4) and ExactSums(3) != "sums"
    assert ExactSums(3).size == 3
