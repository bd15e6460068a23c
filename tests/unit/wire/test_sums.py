"""Exact and pooled sums as bytes: nothing is rounded, and only what is expected is read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedprune.errors import WireError
from fedprune.wire.arrays import encode_arrays
from fedprune.wire.changes import encode_update
from fedprune.wire.sums import (
    ExactSums,
    InputSums,
    PooledSums,
    decode_pooled,
    decode_sums,
    encode_pooled,
    encode_sums,
    is_pooled,
)
from tests.support.damage import check_damage, check_sealed_damage

SHAPES = {"q": (4, 5), "k": (2, 5), "o": (5, 4), "up": (9, 5)}
LINEARS = (("q", "k"), ("o",), ("up",))


def exact(rows, size):
    sums = ExactSums(size)
    for row in rows:
        sums.add(np.asarray(row, dtype=np.float32))
    return sums


def groups(seed=0, samples=3, spread=1.0, linears=LINEARS):
    draw = np.random.default_rng(seed)
    made = []
    for names in linears:
        size = SHAPES[names[0]][1]
        rows = draw.lognormal(0, spread, (samples, size)).clip(max=1e18)
        made.append(InputSums(names, exact(rows, size), 100 + seed))
    return made


def decode(data):
    return decode_sums(data, SHAPES)


DATA = encode_sums(groups())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(0, 40), st.sampled_from([0.1, 1.0, 12.0]))
def test_round_trip(seed, samples, spread):
    sent = groups(seed, samples, spread)
    assert decode(encode_sums(sent)) == sent


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 2**63, exclude_max=True, width=32), min_size=1, max_size=40))
def test_any_sums_come_back(values):
    sent = [InputSums(("a",), exact([values, values], len(values)), 1)]
    assert decode_sums(encode_sums(sent), {"a": (1, len(values))}) == sent


def test_sums_at_their_limit_come_back():
    sums = exact([[2.0**63 - 2.0**39, 0]] * 4, 2)
    (found,) = decode_sums(encode_sums([InputSums(("a",), sums, 1)]), {"a": (1, 2)})
    assert found.sums == sums


@pytest.mark.parametrize(("samples", "most"), [(2, 3.8), (16, 4.3), (128, 4.9)])
def test_bytes_a_column_of_realistic_sums(samples, most):
    draw = np.random.default_rng(0)
    norms = draw.lognormal(0, 1, 4096)
    rows = 2048 * (norms * draw.lognormal(0, 0.2, (samples, 4096))) ** 2
    data = encode_sums([InputSums(("a",), exact(rows, 4096), 2048 * samples)])
    assert len(data) / 4096 < most


def test_columns_of_zeros_take_no_bytes():
    data = encode_sums([InputSums(("a",), ExactSums(1000), 5)])
    assert len(data) < 400
    assert decode_sums(data, {"a": (1, 1000)})[0].sums == ExactSums(1000)


def test_damage_is_refused():
    check_damage(decode, DATA)
    check_sealed_damage(decode, DATA)


def digits(*rows):
    """The digits of one column: its number of bits, then its bytes, highest first."""
    padded = [*rows, *[0] * (17 - len(rows))]
    return np.array(padded, dtype=np.uint8)[:, None]


def message(rows=(2, 0b1100_0000), name="a", tokens=1, **more):
    return encode_arrays(
        {
            f"{name}.tokens": np.array(tokens, dtype=np.int64),
            f"{name}.exact_squares": digits(*rows),
        }
        | more
    )


def test_layout_is_the_documented_one():
    # 3 units of 2**-64: two bits, 0b11, the highest bit first.
    (found,) = decode_sums(message(), {"a": (1, 1)})
    assert found.sums.to_float64().tolist() == [3 * 2.0**-64]
    assert (found.linears, found.tokens) == (("a",), 1)
    assert encode_sums([found]) == message()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (message([129]), "the input of 'a': .*128 bits at most"),
        (message([2, 0b0100_0000]), "as many bits as it says"),
        (message([2, 0b1110_0000]), "as many bits as it says"),
        (message([0, 0b1000_0000]), "as many bits as it says"),
        (message(tokens=0), "Sums of no tokens are zero"),
        (message(tokens=-1), "0 to 2.*63 - 1 tokens"),
        (message(name=""), "there is a linear that the block has not"),
        (message(name="a,a"), "there is a linear .* twice"),
        (message(name="a,"), "there is a linear that the block has not"),
        (message(name="b"), "there is a linear that the block has not"),
        (encode_arrays({}), "nothing came for a"),
        (encode_arrays({"a.tokens": np.array(3)}), "'a.exact_squares' is missing"),
        (encode_arrays({"a.exact_squares": digits(0)}), "'a.tokens' is missing"),
        (encode_arrays({"a": digits(0)}), "there are statistics besides tokens, exact_squares"),
        (message(**{"a.more": np.zeros(1)}), "there are statistics besides tokens, exact_squares"),
        (message(**{"a.exact_squares": digits(0)[:16]}), r"must be uint8\[17, 1\]"),
        (message(**{"a.tokens": np.zeros(1, np.int64)}), r"must be int64\[\], got int64\[1\]"),
    ],
)
def test_sound_arrays_that_are_no_sums_are_refused(data, words):
    with pytest.raises(WireError, match=words):
        decode_sums(data, {"a": (1, 1)})


def test_the_error_names_the_input_but_not_what_came():
    other = encode_sums([InputSums(("!",), ExactSums(4), 1), *groups()])
    with pytest.raises(WireError, match="a linear that the block has not") as caught:
        decode(other)
    assert "!" not in str(caught.value)
    with pytest.raises(WireError, match=r"q, k cannot share an input: their d_in differ"):
        decode_sums(DATA, SHAPES | {"k": (2, 6)})
    with pytest.raises(WireError, match="the input of 'o'"):
        decode_sums(DATA, SHAPES | {"o": (5, 3)})
    with pytest.raises(WireError, match="nothing came for gate"):
        decode_sums(DATA, SHAPES | {"gate": (9, 5)})
    with pytest.raises(WireError, match="there is a linear .* twice"):
        decode(encode_sums([*groups(), InputSums(("up", "q"), ExactSums(5), 1)]))


def test_an_experts_sums_of_no_tokens_come_as_they_went():
    nothing = InputSums(("a",), ExactSums(3), 0)
    (found,) = decode_sums(encode_sums([nothing]), {"a": (2, 3)})
    assert (found.tokens, found.sums) == (0, ExactSums(3))
    with pytest.raises(WireError, match="of no tokens"):
        PooledSums(("a",), np.ones(3, np.float32), 0, (0,))
    some = ExactSums(3)
    some.add(np.array([0, 1, 0], np.float32))
    with pytest.raises(WireError, match="of no tokens"):
        InputSums(("a",), some, 0)


def test_inputs_come_in_the_order_of_the_model_and_linears_in_any():
    sent = groups(linears=(("up",), ("k", "q"), ("o",)))
    found = decode(encode_sums(sent))
    assert [one.linears for one in found] == [("k", "q"), ("o",), ("up",)]
    assert sorted(found, key=lambda one: one.linears) == sorted(sent, key=lambda one: one.linears)
    assert encode_sums(sent[::-1]) == encode_sums(sent)


@pytest.mark.parametrize(("linears", "tokens"), [((), 1), (("a", "a"), 1), (("a",), -1)])
def test_what_is_no_input_is_refused(linears, tokens):
    with pytest.raises(WireError):
        InputSums(linears, ExactSums(3), tokens)


POOLED_SHAPES = {"q": (4, 3), "k": (2, 3), "o": (5, 4)}
SQUARES = np.array([0.0, 1e-45, 3.4e38, 2.5], dtype=np.float32)
POOLED = [
    PooledSums(("q", "k"), SQUARES[1:], 7, (0, 2**32 - 1)),
    PooledSums(("o",), SQUARES, 8, (5,)),
]
POOLED_DATA = encode_pooled(POOLED)


def decode_all(data):
    return decode_pooled(data, POOLED_SHAPES)


def same(one, other):
    facts = [(each.linears, each.tokens, each.checksums) for each in (one, other)]
    return facts[0] == facts[1] and one.sums.tobytes() == other.sums.tobytes()


def test_pooled_round_trip():
    found = decode_all(POOLED_DATA)
    assert all(map(same, found, POOLED)) and len(found) == len(POOLED)
    assert torch.equal(found[1].tensor(), torch.from_numpy(SQUARES))
    assert found[1].tensor().dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, 6, elements=st.floats(0, 2.0**127, width=32)))
def test_any_pooled_sums_come_back(values):
    sent = PooledSums(("a",), np.abs(values), 1, (9,))
    (found,) = decode_pooled(encode_pooled([sent]), {"a": (1, 6)})
    assert same(found, sent)


def test_a_message_says_what_it_is():
    assert is_pooled(POOLED_DATA) and is_pooled(memoryview(POOLED_DATA))
    assert not is_pooled(encode_update({})) and not is_pooled(DATA)
    with pytest.raises(WireError):
        is_pooled(b"")


def test_damage_of_pooled_sums_is_refused():
    check_damage(decode_all, POOLED_DATA)
    check_sealed_damage(decode_all, POOLED_DATA)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, -0.0])
def test_sums_that_cannot_be_are_refused(value):
    sums = np.array([1, value], dtype=np.float32)
    with pytest.raises(WireError, match="finite and not negative"):
        PooledSums(("a",), sums, 1, (0,))
    sent = encode_arrays(
        {
            "a.tokens": np.array(1, dtype=np.int64),
            "a.squares": sums,
            "a.mask_checksums": np.zeros(1, dtype=np.uint32),
        }
    )
    with pytest.raises(WireError, match="the input of 'a': .*finite and not negative"):
        decode_pooled(sent, {"a": (1, 2)})


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
