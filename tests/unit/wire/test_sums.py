"""Messages of exact sums: nothing is rounded, and only what the model expects is read."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.sums import ExactSums, InputSums, decode_sums, encode_sums
from tests.support.damage import HEAD, check_damage, check_resealed_damage, resealed

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
    assert len(data) < 40
    assert decode_sums(data, {"a": (1, 1000)})[0].sums == ExactSums(1000)


def test_every_damage_is_refused():
    check_damage(decode, DATA)


def test_resealed_damage_never_fails_otherwise():
    check_resealed_damage(decode, DATA)


def message(*parts):
    """A sealed message written by the documented layout."""
    body = b"".join(parts)
    return struct.pack("<4sHI", b"FPSU", 1, zlib.crc32(body)) + body


def head(names="a", tokens=1):
    labels = b"".join(struct.pack("<H", len(name)) + name.encode() for name in names)
    return struct.pack("<HQ", len(names), tokens) + labels


def planes(*rows):
    return struct.pack("<B", len(rows)) + b"".join(
        struct.pack("<I", len(row)) + bytes(row) for row in rows
    )


def test_layout_is_the_documented_one():
    # 3 units of 2**-64: two bits, 0b11, the highest bit first.
    sent = message(struct.pack("<H", 1), head(), planes([2], [0b1100_0000]))
    (found,) = decode_sums(sent, {"a": (1, 1)})
    assert found.sums.to_float64().tolist() == [3 * 2.0**-64]
    assert (found.linears, found.tokens) == (("a",), 1)
    assert encode_sums([found]) == sent


FLOOD = zlib.compressobj(9, zlib.DEFLATED, -15)
FLOOD_BYTES = FLOOD.compress(bytes(1 << 20)) + FLOOD.flush()
ONE = struct.pack("<H", 1)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([ONE, head(), planes([129])], "128 bits at most"),
        ([ONE, head(), planes([2], [0b0100_0000])], "as many bits as it says"),
        ([ONE, head(), planes([2], [0b1110_0000])], "as many bits as it says"),
        ([ONE, head(), planes([0], [0b1000_0000])], "as many bits as it says"),
        ([ONE, head(), planes(*[[1]] * 18)], "17 planes at most, got 18"),
        ([ONE, head(), planes([1, 1, 1])], "1 bytes at most, got 3"),
        ([ONE, head(), planes([])], "must have 1 bytes"),
        ([ONE, head(tokens=0), planes([0])], "1 to 2.*63 - 1 tokens"),
        ([ONE, head(tokens=2**63), planes([0])], "1 to 2.*63 - 1 tokens"),
        ([ONE, head(""), planes([0])], "one linear or more"),
        ([ONE, head("aa"), planes([0])], "there twice"),
        ([ONE, head("b"), planes([0])], "has not"),
        ([ONE, head(["\x00"]), planes([0])], "has not"),
        ([struct.pack("<H", 0)], "nothing came for a"),
        ([struct.pack("<H", 2), head(), planes(), head(), planes()], "there twice"),
        ([ONE, head(), planes(), b"\0"], "bytes follow the end"),
    ],
)
def test_well_sealed_nonsense_is_refused(parts, words):
    with pytest.raises(WireError, match=words):
        decode_sums(message(*parts), {"a": (1, 1)})


def test_a_plane_that_would_flood_the_memory_is_refused():
    sent = message(ONE, head(), planes(FLOOD_BYTES))
    with pytest.raises(WireError, match="must have 5000 bytes when decompressed"):
        decode_sums(sent, {"a": (1, 5000)})
    garbage = message(ONE, head(), planes(b"\xff" * 9))
    with pytest.raises(WireError, match="cannot be decompressed"):
        decode_sums(garbage, {"a": (1, 5000)})


def test_the_error_names_the_input_but_not_what_came():
    place = DATA.index(b"\x01\x00o")
    with pytest.raises(WireError, match="a linear that the block has not") as caught:
        decode(resealed(DATA, place + 2, b"!"))
    assert "!" not in str(caught.value)
    with pytest.raises(WireError, match=r"q, k cannot share an input: their d_in differ"):
        decode_sums(DATA, SHAPES | {"k": (2, 6)})
    with pytest.raises(WireError, match="the input of 'o'"):
        decode_sums(DATA, SHAPES | {"o": (5, 3)})
    with pytest.raises(WireError, match="nothing came for gate"):
        decode_sums(DATA, SHAPES | {"gate": (9, 5)})
    with pytest.raises(WireError, match="FPSU"):
        decode(b"FPUP" + DATA[4:])


def test_groups_and_linears_may_come_in_any_order():
    sent = groups(linears=(("up",), ("k", "q"), ("o",)))
    assert decode(encode_sums(sent)) == sent
    assert len(encode_sums([])) == HEAD + 2


@pytest.mark.parametrize(("linears", "tokens"), [((), 1), (("a", "a"), 1), (("a",), 0)])
def test_what_is_no_input_is_refused(linears, tokens):
    with pytest.raises(WireError):
        InputSums(linears, ExactSums(3), tokens)
