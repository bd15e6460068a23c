"""N:M coding: numbers as combinatorics defines them, and every way to be wrong."""

import struct
import zlib
from itertools import combinations
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import WireError
from fedprune.wire import nm
from fedprune.wire.masks import BitMask, decode_block, decode_mask, encode_block, encode_mask
from fedprune.wire.nm import coding

P24 = Pattern(2, 4)
PATTERNS = [
    Pattern(*p)
    for p in [(2, 4), (4, 8), (1, 4), (1, 2), (2, 8), (1, 3), (5, 6), (8, 16), (6, 32), (31, 32)]
]


def random_mask(pattern, shape, seed=0):
    """Return a mask that keeps N of every M consecutive inputs."""
    rng = np.random.default_rng(seed)
    ranks = rng.random((shape[0] * shape[1] // pattern.m, pattern.m)).argsort(axis=1)
    return BitMask.from_bool((ranks < pattern.n).reshape(shape))


def oracle_payload(mask, pattern, digits, size):
    """Number each group by its place among all groups in order, and pack the numbers."""
    # In the combinatorial number system groups sort by their highest survivor first.
    order = sorted(combinations(range(pattern.m), pattern.n), key=lambda group: group[::-1])
    number = {group: place for place, group in enumerate(order)}
    groups = [tuple(np.flatnonzero(g).tolist()) for g in mask.to_bool().reshape(-1, pattern.m)]
    payload = b""
    for start in range(0, len(groups), digits):
        part = groups[start : start + digits]
        integer = sum(number[group] * len(order) ** i for i, group in enumerate(part))
        payload += integer.to_bytes(size, "little")
    return payload


@pytest.mark.parametrize(
    ("pattern", "digits", "size"),
    [("2:4", 3, 1), ("1:4", 4, 1), ("4:8", 5, 4), ("2:8", 13, 8), ("1:3", 5, 1), ("5:6", 3, 1)],
)
def test_payload_is_the_documented_one(pattern, digits, size):
    pattern = Pattern.parse(pattern)
    mask = random_mask(pattern, (7, 5 * pattern.m))
    payload = encode_mask(mask, pattern)[32:]
    assert payload == oracle_payload(mask, pattern, digits, size)


def test_long_groups_are_numbered_alike():
    pattern = Pattern(2, 20)
    code = coding(pattern)
    mask = random_mask(pattern, (7, 100))
    payload = encode_mask(mask, pattern)[32:]
    assert payload == oracle_payload(mask, pattern, code.digits, code.size)


@given(
    st.sampled_from(PATTERNS),
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    st.integers(0, 2**31),
)
@settings(deadline=None)
def test_round_trip(pattern, shape, seed):
    shape = (shape[0], shape[1] * pattern.m)
    mask = random_mask(pattern, shape, seed)
    data = encode_mask(mask, pattern)
    found = decode_mask(data, shape)
    assert found == mask
    assert not found.bits.flags.writeable
    assert len(data) <= 32 + mask.bits.size + 7


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_steps_do_not_show(pattern, monkeypatch):
    shape = (61, 30 * pattern.m)
    mask = random_mask(pattern, shape)
    data = encode_mask(mask, pattern)
    monkeypatch.setattr(nm, "_WEIGHTS", 1)
    assert encode_mask(mask, pattern) == data
    assert decode_mask(data, shape) == mask


def test_bits_per_weight():
    shape = (256, 768)
    for pattern, most in (P24, 0.667), (Pattern(4, 8), 0.801), (Pattern(1, 4), 0.501):
        payload = encode_mask(random_mask(pattern, shape), pattern)[32:]
        assert 8 * len(payload) / (256 * 768) <= most
        assert 8 * len(payload) / (256 * 768) >= log2(comb(pattern.m, pattern.n)) / pattern.m


@pytest.mark.parametrize("pattern", ["unstructured", "8:16", "16:32", "32:64", "128:256"])
def test_plain_bits_where_they_are_as_short(pattern):
    pattern = Pattern.parse(pattern)
    assert coding(pattern) is None
    shape = (3, 256)
    mask = random_mask(pattern if pattern.structured else P24, shape)
    assert encode_mask(mask, pattern) == encode_mask(mask)


@pytest.mark.parametrize("pattern", ["2:4", "1:3", "6:32"])
def test_masks_of_another_pattern_are_not_encoded(pattern):
    pattern = Pattern.parse(pattern)
    flags = random_mask(pattern, (4, 2 * pattern.m)).to_bool().copy()
    flags[3, pattern.m] ^= True
    with pytest.raises(WireError, match=f"must keep {pattern.n} of every {pattern.m}"):
        encode_mask(BitMask.from_bool(flags), pattern)
    with pytest.raises(WireError, match=f"4x7 cannot be {pattern}"):
        encode_mask(BitMask.from_bool(np.ones((4, 7), dtype=bool)), pattern)


SHAPE = (5, 8)  # ten groups: three bytes of three, one of one
MASK = random_mask(P24, SHAPE, 3)
DATA = encode_mask(MASK, P24)


def reheaded(payload, **changed):
    """Encode by the documented layout, with some header fields replaced."""
    fields = {"n": 2, "m": 4, "d_out": 5, "d_in": 8, "crc": zlib.crc32(payload), "survivors": 20}
    return struct.pack("<8sHBBIIIQ", b"fedprmsk", 1, *(fields | changed).values()) + payload


def test_header_is_the_documented_one():
    assert reheaded(DATA[32:]) == DATA


def test_every_changed_byte_is_noticed():
    for place in range(len(DATA)):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            broken = bytearray(DATA)
            broken[place] ^= flip
            with pytest.raises(WireError):
                decode_mask(bytes(broken), SHAPE)


def test_every_truncation_is_noticed():
    for length in range(len(DATA)):
        with pytest.raises(WireError, match="expected .* bytes .*found"):
            decode_mask(DATA[:length], SHAPE)
    with pytest.raises(WireError, match="expected 36 bytes .*found 37"):
        decode_mask(DATA + b"\0", SHAPE)


@pytest.mark.parametrize("word", [216, 255])
def test_words_that_are_no_groups(word):
    payload = bytearray(DATA[32:])
    payload[1] = word
    with pytest.raises(WireError, match="no group of a 2:4 mask"):
        decode_mask(reheaded(bytes(payload)), SHAPE)


@pytest.mark.parametrize("word", [6, 36, 215])
def test_digits_after_the_last_group_must_be_zero(word):
    payload = DATA[32:35] + bytes([word])
    with pytest.raises(WireError, match="no group of a 2:4 mask"):
        decode_mask(reheaded(payload), SHAPE)


@pytest.mark.parametrize("pattern", [Pattern(4, 8), Pattern(2, 8), Pattern(6, 32)], ids=str)
def test_wide_words_that_are_no_groups(pattern):
    shape = (4, 2 * pattern.m)
    data = encode_mask(random_mask(pattern, shape), pattern)
    payload = data[32:-1] + b"\xff"
    head = {"n": pattern.n, "m": pattern.m, "d_out": 4, "d_in": shape[1]}
    with pytest.raises(WireError, match=f"no group of a {pattern} mask"):
        decode_mask(reheaded(payload, **head, survivors=8 * pattern.n), shape)


@pytest.mark.parametrize(("n", "m"), [(4, 2), (0, 4), (2, 0), (4, 4), (2, 3), (2, 5), (8, 16)])
def test_codings_that_cannot_be(n, m):
    with pytest.raises(WireError, match=f"Mask coding: {n}:{m} is none of a 5x8 mask"):
        decode_mask(reheaded(DATA[32:], n=n, m=m), SHAPE)


def test_survivor_count_is_checked():
    with pytest.raises(WireError, match="survivor count: expected 21, found 20"):
        decode_mask(reheaded(DATA[32:], survivors=21), SHAPE)


@given(st.binary(min_size=4, max_size=4))
def test_any_payload_gives_the_pattern_or_is_refused(payload):
    try:
        mask = decode_mask(reheaded(payload), SHAPE)
    except WireError:
        assert max(payload[:3]) > 215 or payload[3] > 5
        return
    assert (mask.to_bool().reshape(-1, 4).sum(axis=1) == 2).all()
    assert encode_mask(mask, P24)[32:] == payload  # one encoding for each mask


def test_blocks_pass_the_pattern_on():
    masks = {"q": MASK, "up": random_mask(P24, (3, 16))}
    data = encode_block(masks, P24)
    assert len(data) < len(encode_block(masks))
    shapes = {name: mask.shape for name, mask in masks.items()}
    found = decode_block(data, shapes)
    assert all(found[name] == mask for name, mask in masks.items())
    assert decode_block(encode_block(masks), shapes)["q"] == MASK
