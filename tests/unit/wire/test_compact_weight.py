"""Compact weights: every bit comes back, the documented bytes, and nothing that is damaged."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.changes import FLOATS, SparseWeight
from fedprune.wire.compact import decode_weight, decode_weight_mask, encode_weight
from fedprune.wire.masks import HEADER, BitMask, decode_mask
from tests.support.damage import check_damage, check_resealed_damage


def some_weight(shape, dtype=torch.bfloat16, share=0.5, seed=0):
    mask = BitMask.from_bool(np.random.default_rng(seed).random(shape) < share)
    return SparseWeight.from_dense(values(shape, dtype, seed), mask)


def values(shape, dtype, seed=0):
    return (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    st.sampled_from(FLOATS),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(0, 99),
)
def test_round_trip(shape, dtype, share, seed):
    weight = some_weight(shape, dtype, share, seed)
    weight.values[::3] = -0.0
    data = encode_weight(weight)
    assert decode_weight(data, shape) == weight
    assert decode_weight_mask(data, shape) == weight.mask


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_exponent_and_sign_comes_back(dtype):
    words = np.arange(1 << 16, dtype=np.uint16)
    if dtype == torch.float32:
        words = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    bits = torch.from_numpy(words).view(dtype)
    finite = bits[bits.isfinite()].clone()
    finite = finite[: finite.numel() // 8 * 8].view(8, -1)
    everything = BitMask.from_bool(np.ones(tuple(finite.shape), bool))
    weight = SparseWeight.from_dense(finite, everything)
    assert decode_weight(encode_weight(weight), weight.shape) == weight


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_documented_bytes_read_by_plain_integers(dtype):
    weight = some_weight((16, 64), dtype)
    data = encode_weight(weight)
    code, size = data[10], int.from_bytes(data[11:15], "little")
    mask = decode_mask(data[15 : 15 + size], (16, 64))
    place = 16 + size
    planes = []
    for _ in range(data[place - 1]):
        length = int.from_bytes(data[place : place + 4], "little")
        body = data[place + 4 : place + 4 + length]
        plane = body if length == mask.survivors else zlib.decompress(body, -zlib.MAX_WBITS)
        planes.append(plane)
        place += 4 + length
    bits = 8 * dtype.itemsize
    found = []
    for number in zip(*planes, strict=True):
        turned = int.from_bytes(bytes(number), "big")
        found.append(turned >> 1 | (turned & 1) << bits - 1)
    assert place == len(data) and FLOATS[code] == dtype and mask == weight.mask
    assert found == weight.words().tolist()


def test_exponents_of_survivors_are_packed_and_noise_costs_no_more():
    weight = some_weight((256, 256), torch.bfloat16)
    kept = np.abs(values((256, 256), torch.float32).numpy())
    pruned = SparseWeight.from_dense(
        values((256, 256), torch.bfloat16), BitMask.from_bool(kept > np.median(kept))
    )
    assert len(encode_weight(pruned)) < 0.37 * 2 * 256 * 256
    words = np.random.default_rng(0).integers(0, 0x7F80, weight.words().size, dtype=np.uint16)
    noise = SparseWeight.from_words(words, torch.bfloat16, weight.mask)
    assert len(encode_weight(noise)) <= 2 * words.size + 256 * 256 // 8 + HEADER.size + 24


@pytest.mark.parametrize(("n", "m", "bits"), [(2, 4, 2 / 3), (4, 8, 0.8), (1, 4, 0.5)])
def test_n_of_m_masks_take_fewer_bits(n, m, bits):
    order = np.random.default_rng(0).random((64, 512 // m, m)).argsort(axis=2)
    keep = BitMask.from_bool((order < n).reshape(64, 512))
    weight = SparseWeight.from_dense(values((64, 512), torch.bfloat16), keep)
    data = encode_weight(weight)
    size = int.from_bytes(data[11:15], "little") - HEADER.size
    assert size <= bits * 64 * 512 / 8 + 8
    assert decode_weight(data, (64, 512)) == weight


def test_a_mask_that_only_starts_like_a_pattern_is_stored_as_it_is():
    keep = np.tile([True, True, False, False], (8, 16))
    keep[-1, -1] = True
    weight = SparseWeight.from_dense(values((8, 64), torch.float16), BitMask.from_bool(keep))
    assert decode_weight(encode_weight(weight), (8, 64)) == weight


def test_refuses_damage():
    data = encode_weight(some_weight((3, 20)))
    check_damage(lambda found: decode_weight(found, (3, 20)), data)
    check_resealed_damage(lambda found: decode_weight(found, (3, 20)), data)


def test_refuses_another_shape_and_type():
    data = bytearray(encode_weight(some_weight((4, 8))))
    with pytest.raises(WireError, match="8x4"):
        decode_weight(bytes(data), (8, 4))
    data[10] = len(FLOATS)
    data[6:10] = zlib.crc32(data[10:]).to_bytes(4, "little")
    with pytest.raises(WireError, match="type must be below 3, got 3"):
        decode_weight(bytes(data), (4, 8))
