"""A block's update: exact round trip, and nothing but exactly what the model expects is read."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.bitmask import BitMask
from fedprune.wire.update import LinearUpdate, decode_update, encode_update, mask_of

SHAPES = {"self_attn.q_proj": (3, 5), "mlp.up_proj": (7, 8), "mlp.down": (1, 1)}


def updates(seed=0, total=3, scaled=True) -> dict[str, LinearUpdate]:
    draw = np.random.default_rng(seed)
    made = {}
    for name, shape in SHAPES.items():
        mask = BitMask.from_bool(draw.random(shape) < 0.5)
        keeps = draw.integers(0, total, mask.survivors, endpoint=True, dtype=np.uint32)
        made[name] = LinearUpdate(mask, keeps if scaled else None, total)
    return made


SCALED, PLAIN = encode_update(updates()), encode_update(updates(scaled=False))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(1, 2**32 - 1) | st.integers(1, 300), st.booleans())
def test_round_trip_in_order(seed, total, scaled):
    sent = updates(seed, total, scaled)
    found = decode_update(encode_update(sent), SHAPES)
    assert list(found) == list(sent)
    assert found == sent


def test_counts_take_as_many_bits_as_the_total_has():
    survivors = [update.mask.survivors for update in updates().values()]
    for total, bits in ((1, 1), (3, 2), (64, 7)):
        planes = sum(bits * ((count + 7) // 8) for count in survivors)
        assert len(encode_update(updates(total=total))) - len(PLAIN) == planes


def test_factors_are_the_share_of_clients_that_kept_the_weight():
    mask = BitMask.from_bool(np.array([[True, False, True], [True, True, False]]))
    update = LinearUpdate(mask, np.array([3, 1, 0, 2], dtype=np.uint32), 3)
    third = np.float32(1) / np.float32(3)
    expected = np.array([[1, 0, third], [0, np.float32(2) / np.float32(3), 0]], dtype=np.float32)
    factors = update.factors()
    assert factors is not None and factors.dtype == np.float32
    assert np.array_equal(factors, expected)
    assert LinearUpdate(mask, None, 3).factors() is None
    assert mask_of(update) is mask_of(mask) is mask
    assert update.shape == (2, 3)


@pytest.mark.parametrize("data", [SCALED, PLAIN], ids=["scaled", "plain"])
def test_every_truncation_and_every_flipped_byte_is_refused(data):
    for length in range(len(data)):
        with pytest.raises(WireError):
            decode_update(data[:length], SHAPES)
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x41
        with pytest.raises(WireError):
            decode_update(bytes(broken), SHAPES)


def resealed(data: bytes, place: int, value: bytes) -> bytes:
    """Change bytes and make the checksum right again, as a malicious server would."""
    body = bytearray(data)
    body[place : place + len(value)] = value
    body[6:10] = struct.pack("<I", zlib.crc32(body[14:]))
    return bytes(body)


FIRST = 14 + struct.unpack_from("<I", SCALED, 10)[0]  # the first linear's flag


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (resealed(SCALED, 10, struct.pack("<I", 2**31)), "masks end at byte"),
        (resealed(SCALED, FIRST, b"\x02"), "scaled or not"),
        (resealed(SCALED, FIRST + 1, struct.pack("<I", 0)), "total must be from 1"),
        (resealed(SCALED, FIRST + 1, struct.pack("<I", 2)), "cannot be kept by 3 of 2"),
        (resealed(SCALED, FIRST + 1, struct.pack("<I", 2**32 - 1)), "counts end at byte"),
        (resealed(SCALED, FIRST + 5, b"\xff\xff"), "unused bits"),
        (resealed(SCALED + b"\0", 4, b""), "bytes follow the last linear"),
        (resealed(PLAIN[:-1], 4, b""), "end before its total"),
    ],
)
def test_well_sealed_nonsense_is_refused(data, words):
    with pytest.raises(WireError, match=words):
        decode_update(data, SHAPES)


def test_other_linears_and_shapes_are_refused():
    with pytest.raises(WireError, match="2 linears, got masks for 3"):
        decode_update(SCALED, dict(list(SHAPES.items())[:2]))
    with pytest.raises(WireError, match=r"linear 'mlp\.up_proj'"):
        decode_update(SCALED, {**SHAPES, "mlp.up_proj": (8, 7)})


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
