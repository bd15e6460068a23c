"""Floating-point numbers as integers: exact sums in any order, rounded once."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.methods.word_sums import from_fixed, to_fixed, to_float32
from fedprune.privacy.secure_masks import add_words

NUMBERS = st.floats(-(2.0**40), 2.0**40, width=32)


def units(value: float) -> int:
    """The oracle: whole units, what is below them cut off."""
    whole = abs(Fraction(value)) * 2**64
    return int(whole) if value >= 0 else -int(whole)


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_a_sum_is_that_of_fractions_rounded_once(values):
    total = to_fixed(np.array(values[:1]))
    for value in values[1:]:
        add_words(total, to_fixed(np.array([value])))
    exact = Fraction(sum(map(units, values)), 2**64)
    assert from_fixed(total)[0] == float(exact)
    nearest = min(
        (np.nextafter(np.float32(exact), np.float32(side)) for side in (-np.inf, np.inf)),
        key=lambda near: abs(Fraction(float(near)) - exact),
    )
    found = to_float32(total)[0]
    assert abs(Fraction(float(found)) - exact) <= abs(Fraction(float(nearest)) - exact)


def test_numbers_and_their_opposites_are_nothing_and_small_ones_are_cut_off():
    values = np.array([3.25, -(2.0**61), 2.0**-64, -(2.0**-65), -(2.0**-80)])
    total = to_fixed(values)
    assert from_fixed(total).tolist() == [3.25, -(2.0**61), 2.0**-64, 0.0, 0.0]
    add_words(total, to_fixed(-values))
    assert not total.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**62, -(2.0**62)])
def test_what_has_no_room_is_refused(value):
    with pytest.raises(WireError, match=r"2\*\*62"):
        to_fixed(np.array([1.0, value]))
    with pytest.raises(WireError, match="3 clients"):
        to_fixed(np.array([2.0**61]), clients=3)
