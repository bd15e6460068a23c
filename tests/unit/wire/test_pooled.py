"""Pooled sums: what the server has reaches every node bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedprune.errors import WireError
from fedprune.wire.changes import encode_update
from fedprune.wire.sums import PooledSums, decode_pooled, encode_pooled, is_pooled
from tests.support.damage import check_damage, check_resealed_damage, resealed

SHAPES = {"q": (4, 3), "k": (2, 3), "o": (5, 4)}
SUMS = np.array([0.0, 1e-45, 3.4e38, 2.5], dtype=np.float32)
GROUPS = [PooledSums(("q", "k"), SUMS[1:], 7, (0, 2**32 - 1)), PooledSums(("o",), SUMS, 8, (5,))]
DATA = encode_pooled(GROUPS)


def decode(data):
    return decode_pooled(data, SHAPES)


def same(one, other):
    facts = [(each.linears, each.tokens, each.checksums) for each in (one, other)]
    return facts[0] == facts[1] and one.sums.tobytes() == other.sums.tobytes()


def test_round_trip():
    found = decode(DATA)
    assert all(map(same, found, GROUPS)) and len(found) == len(GROUPS)
    assert torch.equal(found[1].tensor(), torch.from_numpy(SUMS))
    assert found[1].tensor().dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, 6, elements=st.floats(0, 2.0**127, width=32)))
def test_any_sums_come_back(values):
    sent = PooledSums(("a",), np.abs(values), 1, (9,))
    (found,) = decode_pooled(encode_pooled([sent]), {"a": (1, 6)})
    assert same(found, sent)


def test_a_message_says_what_it_is():
    assert is_pooled(DATA) and is_pooled(memoryview(DATA))
    assert not is_pooled(encode_update({})) and not is_pooled(b"")


def test_every_damage_is_refused():
    check_damage(decode, DATA)


def test_resealed_damage_never_fails_otherwise():
    check_resealed_damage(decode, DATA)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, -0.0])
def test_sums_that_cannot_be_are_refused(value):
    sums = np.array([1, value], dtype=np.float32)
    with pytest.raises(WireError, match="finite and not negative"):
        PooledSums(("a",), sums, 1, (0,))
    end = resealed(DATA, len(DATA) - 4, np.float32(value).tobytes())
    with pytest.raises(WireError, match="the input of 'o': .*finite and not negative"):
        decode(end)


@pytest.mark.parametrize(
    ("sums", "checksums", "words"),
    [
        (np.zeros(3), (0,), "vector of float32"),
        (np.zeros((3, 1), np.float32), (0,), "vector of float32"),
        (np.zeros(3, np.float32), (), "as many checksums"),
        (np.zeros(3, np.float32), (0, 0), "as many checksums"),
    ],
)
def test_parts_must_fit_each_other(sums, checksums, words):
    with pytest.raises(WireError, match=words):
        PooledSums(("a",), sums, 1, checksums)
