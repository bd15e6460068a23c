"""Pooled sums against their definitions, in any order of clients."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import ConfigError, QuorumError
from fedprune.methods.sums import SumsPool
from fedprune.wire.sums import ExactSums, InputSums

MODES = ("tokens", "clients", "scaled")


def client(parts, tokens, linears=("q", "k")):
    """Return the sums of a client that added up these float32 vectors."""
    sums = ExactSums(len(parts[0]))
    for part in parts:
        sums.add(np.array(part, dtype=np.float32))
    return InputSums(linears, sums, tokens)


def clients(seed, count, columns=11):
    rng = np.random.default_rng(seed)
    return [
        client(rng.lognormal(0, 3, (3, columns)), int(rng.integers(1, 5000))) for _ in range(count)
    ]


def pooled(mode, fleet):
    pool = SumsPool(mode)
    for one in fleet:
        pool.add(one)
    return pool.result()


def nearest(fractions):
    """Return each fraction's nearest float32; the cases have no ties."""
    return np.array([np.float32(float(f)) for f in fractions])


@given(st.integers(0, 2**31), st.integers(1, 9), st.randoms())
@settings(deadline=None, max_examples=40)
def test_order_does_not_matter(seed, count, random):
    fleet = clients(seed, count)
    shuffled = random.sample(fleet, count)
    for mode in MODES:
        one, tokens = pooled(mode, fleet)
        two, same = pooled(mode, shuffled)
        assert one.tobytes() == two.tobytes() and tokens == same
        assert one.dtype == np.float32


def test_tokens_are_the_sums_of_all_texts_in_one_place():
    rng = np.random.default_rng(1)
    samples = rng.lognormal(0, 4, (40, 7)).astype(np.float32)
    whole = client(samples, 40)
    for cuts in ([20], [1, 2, 3], [7, 39]):
        parts = np.split(samples, cuts)
        sums, tokens = pooled("tokens", [client(part, len(part)) for part in parts])
        assert sums.tobytes() == whole.sums.to_float32().tobytes() and tokens == 40


def test_clients_add_mean_squares():
    fleet = clients(2, 5)
    sums, tokens = pooled("clients", fleet)
    terms = [(one.sums.to_float64() / one.tokens).astype(np.float32) for one in fleet]
    # Multiples of 2**-64, cut off below, added as fractions.
    unit = 2**64
    exact = [
        sum(Fraction(math.floor(Fraction(float(term[j])) * unit), unit) for term in terms)
        for j in range(11)
    ]
    assert np.array_equal(sums, nearest(exact)) and tokens == 5


def test_scaled_clients_count_by_proportions():
    quiet = client([[1.0, 3.0]], 4)
    loud = client([[6e6, 2e6]], 1)
    sums, tokens = pooled("scaled", [quiet, loud])
    assert sums.tolist() == [0.5 + 1.5, 1.5 + 0.5] and tokens == 2
    silent = client([[0.0, 0.0]], 9)
    sums, tokens = pooled("scaled", [quiet, silent])
    assert sums.tolist() == [0.5, 1.5] and tokens == 2


def test_the_largest_squares_saturate():
    sums, tokens = pooled("clients", [client([[2.0**62, 1.0]] * 3, 1)] * 2)
    assert sums.tolist() == [2 * np.nextafter(np.float32(2.0**63), np.float32(0)), 6.0]
    assert tokens == 2


def test_no_client_has_nothing_to_pool():
    with pytest.raises(QuorumError, match="nothing to pool"):
        SumsPool("clients").result()


def test_unknown_mode():
    with pytest.raises(ConfigError, match="`strategy.pooling` must be one of .* got 'median'"):
        SumsPool("median")
