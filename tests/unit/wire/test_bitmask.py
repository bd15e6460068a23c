"""Packed masks against plain boolean arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedprune.errors import WireError
from fedprune.wire.masks import BitMask, packed_size, popcount

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 140))
MASKS = SHAPES.flatmap(lambda shape: arrays(np.bool_, shape))


@given(MASKS)
def test_round_trip_and_counts(mask):
    packed = BitMask.from_bool(mask)
    assert np.array_equal(packed.to_bool(), mask)
    assert packed.to_bool().dtype == np.bool_
    assert packed.numel == mask.size
    assert packed.bits.size == packed_size(mask.size) == -(-mask.size // 8)
    assert packed.survivors == sum(bool(x) for x in mask.flat)
    assert packed.row_survivors().tolist() == [sum(bool(x) for x in row) for row in mask]
    assert packed.sparsity == pytest.approx(1 - mask.mean())


@given(MASKS)
def test_bit_order_and_padding(mask):
    packed = BitMask.from_bool(mask)
    flat = mask.ravel()
    for place in range(packed.bits.size * 8):
        bit = packed.bits[place // 8] >> (place % 8) & 1
        assert bit == (flat[place] if place < flat.size else 0)


def test_row_survivors_of_whole_words():
    mask = np.random.default_rng(0).random((7, 192)) < 0.3
    assert BitMask.from_bool(mask).row_survivors().tolist() == mask.sum(axis=1).tolist()


def test_transposed_input_is_packed_row_major():
    mask = np.arange(12).reshape(3, 4) % 5 == 0
    assert BitMask.from_bool(mask.T) == BitMask.from_bool(mask.T.copy())


def test_equality_looks_at_shape_and_bits():
    mask = BitMask.from_bool(np.ones((2, 8), dtype=bool))
    assert mask == BitMask(mask.bits.copy(), (2, 8))
    assert mask != BitMask(mask.bits, (8, 2))
    assert mask != BitMask(np.array([255, 254], np.uint8), (2, 8))
    assert mask != "mask"


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 64, 65])
def test_popcount(size):
    bits = np.random.default_rng(size).integers(0, 256, size + 1, dtype=np.uint8)
    for part in (bits[:size], bits[1:]):  # the second one starts at an odd address
        assert popcount(part) == sum(int(byte).bit_count() for byte in part)


@pytest.mark.parametrize(
    ("bits", "shape", "words"),
    [
        (np.zeros(2, np.uint8), (0, 8), "positive, got 0x8"),
        (np.zeros(2, np.uint8), (3, 8), "3x8 is 3 bytes"),
        (np.zeros(2, np.int8), (2, 8), "int8"),
        (np.zeros((2, 1), np.uint8), (2, 8), r"shape \(2, 1\)"),
        (np.array([0, 0b10], np.uint8), (3, 3), "uses 1 bits of its last byte.*0x02"),
    ],
)
def test_bits_that_are_no_mask(bits, shape, words):
    with pytest.raises(WireError, match=words):
        BitMask(bits, shape)
