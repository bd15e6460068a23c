"""The mask codec: round trip, and every way to be wrong."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedprune.errors import WireError
from fedprune.wire.masks import HEADER, BitMask, decode_mask, encode_mask

SHAPE = (5, 7)  # 35 weights: five bytes, five padding bits


@pytest.fixture
def mask():
    return BitMask.from_bool(np.random.default_rng(1).random(SHAPE) < 0.5)


def reheaded(mask, bits=None, **changed):
    """Encode by the documented layout, with some header fields replaced."""
    bits = mask.bits.tobytes() if bits is None else bits
    fields = {
        "magic": b"fedprmsk",
        "version": 1,
        "n": 0,
        "m": 0,
        "d_out": mask.shape[0],
        "d_in": mask.shape[1],
        "crc": zlib.crc32(bits),
        "survivors": mask.survivors,
    } | changed
    return struct.pack("<8sHBBIIIQ", *fields.values()) + bits


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 40)).flatmap(lambda shape: arrays(np.bool_, shape))
)
def test_round_trip(flags):
    original = BitMask.from_bool(flags)
    data = encode_mask(original)
    assert len(data) == 32 + original.bits.size
    assert decode_mask(data, flags.shape) == original
    assert decode_mask(memoryview(b"x" + data)[1:], flags.shape) == original


def test_layout_is_the_documented_one(mask):
    assert encode_mask(mask) == reheaded(mask)


def test_decoded_bits_cannot_be_written(mask):
    decoded = decode_mask(memoryview(bytearray(encode_mask(mask))), SHAPE)
    with pytest.raises(ValueError, match="read-only"):
        decoded.bits[0] = 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"magic": b"fedprmsx"}, "magic: expected b'fedprmsk', found something else"),
        ({"version": 2}, "version: expected 1, found 2"),
        ({"d_out": 7, "d_in": 5}, "shape: expected 5x7, found 7x5"),
        ({"d_out": 6}, "shape: expected 5x7, found 6x7"),
        ({"d_in": 8}, "shape: expected 5x7, found 5x8"),
        ({"crc": 0}, "CRC-32: expected 0x00000000, found 0x"),
        ({"survivors": 36}, "survivor count: expected 36, found"),
    ],
)
def test_each_header_field_is_checked(mask, changed, words):
    with pytest.raises(WireError, match=words):
        decode_mask(reheaded(mask, **changed), SHAPE)


def test_every_changed_byte_is_noticed(mask):
    data = encode_mask(mask)
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x10
        with pytest.raises(WireError):
            decode_mask(bytes(broken), SHAPE)


def test_every_truncation_is_noticed(mask):
    data = encode_mask(mask)
    for length in range(len(data)):
        with pytest.raises(WireError, match=f"expected 37 bytes .*found {length}"):
            decode_mask(data[:length], SHAPE)


def test_trailing_bytes_are_refused(mask):
    with pytest.raises(WireError, match="expected 37 bytes .*found 38"):
        decode_mask(encode_mask(mask) + b"\0", SHAPE)


def test_mask_of_another_linear_is_refused(mask):
    with pytest.raises(WireError, match="shape: expected 7x5, found 5x7"):
        decode_mask(encode_mask(mask), (7, 5))


def test_padding_must_be_zero(mask):
    bits = bytearray(mask.bits.tobytes())
    bits[-1] |= 0x80
    with pytest.raises(WireError, match="uses 3 bits of its last byte"):
        decode_mask(reheaded(mask, bytes(bits)), SHAPE)


def test_strided_bytes_are_refused(mask):
    doubled = memoryview(bytes(2 * len(encode_mask(mask))))[::2]
    with pytest.raises(WireError, match="contiguous"):
        decode_mask(doubled, SHAPE)


def test_header_is_32_bytes():
    assert HEADER.size == 32
