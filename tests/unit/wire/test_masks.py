"""Packed masks against plain boolean arrays, and a block of them as bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedprune.errors import WireError
from fedprune.wire.arrays import encode_arrays
from fedprune.wire.changes import encode_update
from fedprune.wire.masks import BitMask, decode_masks, encode_masks, packed_size, popcount
from tests.support.damage import check_damage, check_sealed_damage

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


def random_masks(shapes, share=0.5):
    draw = np.random.default_rng(0)
    return {name: BitMask.from_bool(draw.random(shape) < share) for name, shape in shapes.items()}


SHAPES = {"self_attn.q_proj": (3, 5), "mlp.up_proj": (7, 8), "mlp.down": (1, 1)}
SENT = random_masks(SHAPES)
DATA = encode_masks(SENT)


def decode(data):
    return decode_masks(data, SHAPES)


@given(MASKS, MASKS)
def test_blocks_come_back_in_the_order_of_the_model(one, other):
    sent = {"b": BitMask.from_bool(one), "a": BitMask.from_bool(other)}
    found = decode_masks(encode_masks(sent), {"b": one.shape, "a": other.shape})
    assert list(found) == ["b", "a"] and found == sent
    assert not found["b"].bits.flags.writeable


def structured(n, m, shape=(64, 1024)):
    order = np.random.default_rng(0).random((shape[0], shape[1] // m, m)).argsort(axis=2)
    return BitMask.from_bool((order < n).reshape(shape))


@pytest.mark.parametrize(
    ("mask", "bits"),
    [
        (structured(2, 4), 0.67),
        (structured(4, 8), 0.79),
        (structured(1, 4), 0.53),
        (structured(6, 32), 0.75),
        (random_masks({"a": (64, 1024)}, 0.3)["a"], 0.91),
        (random_masks({"a": (64, 1024)}, 0.2)["a"], 0.76),
        (random_masks({"a": (64, 1024)}, 0.5)["a"], 1),
        (BitMask.from_bool(np.zeros((64, 1024), bool)), 0.13),
    ],
)
def test_bits_a_weight(mask, bits):
    data = encode_masks({"a": mask})
    assert 8 * len(data) < bits * mask.numel + 8 * 260
    assert decode_masks(data, {"a": mask.shape}) == {"a": mask}


def test_damage_is_refused():
    check_damage(decode, DATA)
    check_sealed_damage(decode, DATA)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (dict(list(SHAPES.items())[:2]), "2 arrays came that were not expected"),
        (SHAPES | {"mlp.gate": (2, 2)}, r"'mlp\.gate\.mask' is missing, expected uint8\[1\]"),
        (SHAPES | {"mlp.up_proj": (8, 7)}, r"'mlp\.up_proj': its mask must be of 8x7, got 7x8"),
        (SHAPES | {"mlp.up_proj": (6, 8)}, r"up_proj\.mask' must be uint8\[6\], got uint8\[7\]"),
        (SHAPES | {"self_attn.q_proj": (3, 4)}, r"linear '.*q_proj': its mask must be of 3x4"),
    ],
)
def test_another_block_is_refused(shapes, words):
    with pytest.raises(WireError, match=words):
        decode_masks(DATA, shapes)


def test_padding_must_be_zero():
    sent = {"a.mask": np.array([0x80], np.uint8), "a.shape": np.array([1, 3], np.uint32)}
    with pytest.raises(WireError, match="linear 'a': .*uses 3 bits of its last byte"):
        decode_masks(encode_arrays(sent), {"a": (1, 3)})


def test_an_update_of_masks_alone_is_the_same_bytes():
    assert encode_update(SENT) == DATA
