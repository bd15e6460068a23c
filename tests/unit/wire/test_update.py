"""A block's changes: exact round trip, and nothing but exactly what the model expects is read."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.config.pattern import Pattern
from fedprune.errors import WireError
from fedprune.wire.changes import (
    FLOATS,
    LinearUpdate,
    SparseWeight,
    decode_update,
    encode_update,
    keeps_survivors,
    mask_of,
)
from fedprune.wire.masks import BitMask
from tests.support.damage import check_damage, check_resealed_damage, resealed

SHAPES = {"self_attn.q_proj": (3, 5), "mlp.up_proj": (7, 8), "mlp.down": (1, 1)}


def change(kind, mask, draw, total=3):
    if kind == "mask":
        return mask
    if kind in ("plain", "scaled"):
        keeps = draw.integers(0, total, mask.survivors, endpoint=True, dtype=np.uint32)
        return LinearUpdate(mask, keeps if kind == "scaled" else None, total)
    values = torch.from_numpy(draw.standard_normal(mask.survivors)).to(kind)
    values[::2] = -0.0
    return SparseWeight(mask, values)


KINDS = ("mask", "plain", "scaled", *FLOATS)


def updates(seed=0, kinds=("scaled",) * 3, total=3):
    draw = np.random.default_rng(seed)
    masks = [BitMask.from_bool(draw.random(shape) < 0.5) for shape in SHAPES.values()]
    return {
        name: change(kind, mask, draw, total)
        for name, mask, kind in zip(SHAPES, masks, kinds, strict=True)
    }


def decode(data):
    return decode_update(data, SHAPES)


def encoded(kind):
    return encode_update(updates(kinds=(kind,) * 3))


SCALED, PLAIN, VALUES = encoded("scaled"), encoded("plain"), encoded(torch.bfloat16)
FIRST = 14 + struct.unpack_from("<I", SCALED, 10)[0]  # the first linear's kind


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 99),
    st.tuples(*[st.sampled_from(KINDS)] * 3),
    st.integers(1, 2**32 - 1) | st.integers(1, 300),
)
def test_round_trip_in_order(seed, kinds, total):
    sent = updates(seed, kinds, total)
    found = decode(encode_update(sent))
    assert list(found) == list(sent)
    assert found == sent
    assert [type(one) for one in found.values()] == [type(one) for one in sent.values()]


def test_bytes_are_those_of_the_survivors():
    survivors = [mask_of(one).survivors for one in updates().values()]
    plain, masks = len(PLAIN), len(encoded("mask"))
    assert plain == masks == FIRST + 5 * 3
    for total, bits in ((1, 1), (3, 2), (64, 7)):
        planes = sum(bits * ((count + 7) // 8) for count in survivors)
        assert len(encode_update(updates(total=total))) - plain == planes
    for dtype in FLOATS:
        assert len(encoded(dtype)) - plain == dtype.itemsize * sum(survivors)


def test_a_pattern_shortens_the_masks_of_every_kind():
    keep = np.tile([True, False, False, True], (6, 6))
    sent = {"a": SparseWeight.from_dense(torch.randn(6, 24), BitMask.from_bool(keep))}
    short = encode_update(sent, Pattern(2, 4))
    assert len(short) < len(encode_update(sent))
    assert decode_update(short, {"a": (6, 24)}) == sent


def test_factors_are_the_share_of_clients_that_kept_the_weight():
    mask = BitMask.from_bool(np.array([[True, False, True], [True, True, False]]))
    update = LinearUpdate(mask, np.array([3, 1, 0, 2], dtype=np.uint32), 3)
    third = np.float32(1) / np.float32(3)
    expected = np.array([[1, 0, third], [0, np.float32(2) / np.float32(3), 0]], dtype=np.float32)
    factors = update.factors()
    assert factors is not None and factors.dtype == np.float32
    assert np.array_equal(factors, expected)
    assert LinearUpdate(mask, None, 3).factors() is None
    assert update.shape == (2, 3)


def test_every_change_has_a_mask_and_some_touch_nothing_else():
    for kind, found in zip(KINDS, map(change, KINDS, [MASK] * 6, [DRAW] * 6), strict=True):
        assert mask_of(found) is MASK and found.shape == MASK.shape
        assert keeps_survivors(found) == (kind in ("mask", "plain"))


MASK, DRAW = BitMask.from_bool(np.eye(3, dtype=bool)), np.random.default_rng(0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_is_refused(kind):
    check_damage(decode, encoded(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_resealed_damage_never_fails_otherwise(kind):
    check_resealed_damage(decode, encoded(kind))


def linear(kind, number, place=FIRST):
    return place, struct.pack("<BI", kind, number)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (resealed(SCALED, 10, struct.pack("<I", 2**31)), "the masks would end at byte"),
        (resealed(SCALED, *linear(4, 3)), "kind 0 to 3"),
        (resealed(SCALED, *linear(0, 3)), "kind 0 to 3, and 0 of number 0"),
        (resealed(SCALED, *linear(2, 0)), "total must be from 1"),
        (resealed(SCALED, *linear(2, 2)), "cannot be kept by 3 of 2"),
        (resealed(SCALED, *linear(2, 2**32 - 1)), "its counts would end at byte"),
        (resealed(SCALED, FIRST + 5, b"\xff\xff"), "unused bits"),
        (resealed(SCALED + b"\0", 10, b""), "bytes follow the end"),
        (resealed(PLAIN[:-1], 10, b""), "its kind would end at byte"),
        (resealed(VALUES, *linear(3, 0)), "type 1 to 3, got 0"),
        (resealed(VALUES, *linear(3, 4)), "type 1 to 3, got 4"),
        (resealed(VALUES[:-1], 10, b""), "linear 'mlp.down': .*ends too early"),
        (resealed(VALUES, FIRST + 5, struct.pack("<H", 0x7F80)), "q_proj': .* must be finite"),
        (resealed(VALUES, FIRST + 5, struct.pack("<H", 0xFFC1)), "q_proj': .* must be finite"),
        (b"FPXX" + SCALED[4:], "starts with b'FPUP' version 2"),
        (SCALED[:4] + b"\1\0" + SCALED[6:], "got version 1"),
        (memoryview(bytes(2 * len(SCALED)))[::2], "contiguous"),
    ],
)
def test_well_sealed_nonsense_is_refused(data, words):
    with pytest.raises(WireError, match=words):
        decode(data)


def test_other_linears_and_shapes_are_refused():
    with pytest.raises(WireError, match="2 linears, got masks for 3"):
        decode_update(SCALED, dict(list(SHAPES.items())[:2]))
    with pytest.raises(WireError, match=r"linear 'mlp\.up_proj'"):
        decode_update(SCALED, {**SHAPES, "mlp.up_proj": (8, 7)})
    with pytest.raises(WireError, match="expected the mask of 'q'"):
        decode_update(SCALED, dict(zip("qud", SHAPES.values(), strict=True)))


@pytest.mark.parametrize(
    ("keeps", "total", "words"),
    [
        (np.zeros(3, dtype=np.uint8), 2, "4 survivors"),
        (np.zeros(4, dtype=np.int64), 2, "unsigned counts"),
        (np.full(4, 3, dtype=np.uint8), 2, "kept by 3 of 2"),
        (None, 0, "total"),
        (None, 2**32, "total"),
    ],
)
def test_counts_that_are_not_the_masks_are_refused(keeps, total, words):
    with pytest.raises(WireError, match=words):
        LinearUpdate(BitMask.from_bool(np.ones((2, 2), dtype=bool)), keeps, total)
