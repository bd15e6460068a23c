"""Changes of linears: every bit arrives, and nothing but exactly what the model expects is read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.arrays import encode_arrays
from fedprune.wire.changes import (
    FLOATS,
    LinearUpdate,
    SparseWeight,
    decode_update,
    encode_update,
    keeps_survivors,
    mask_of,
    most_update_bytes,
)
from fedprune.wire.masks import BitMask
from fedprune.wire.quantized import QuantizedWeight
from tests.support.damage import check_damage, check_sealed_damage

INTEGERS = {4: torch.int32, 2: torch.int16}


def bits_of(weight):
    return weight.contiguous().view(INTEGERS[weight.dtype.itemsize]).tolist()


def some_mask(shape, share=0.5, seed=0):
    return BitMask.from_bool(np.random.default_rng(seed).random(shape) < share)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    st.sampled_from(FLOATS),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(0, 99),
)
def test_dense_to_sparse_and_back_by_plain_indexing(shape, dtype, share, seed):
    mask = some_mask(shape, share, seed)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    weight.view(-1)[::3] = -0.0  # a survivor may be zero, of either sign
    sparse = SparseWeight.from_dense(weight, mask)
    rows = zip(weight, mask.to_bool(), strict=True)
    kept = [value for row, keep in rows for value, bit in zip(row, keep, strict=True) if bit]
    assert sparse.values.dtype == dtype and sparse.shape == shape
    assert bits_of(sparse.values) == bits_of(torch.tensor(kept, dtype=dtype))
    expected = weight.clone()
    expected[~torch.from_numpy(mask.to_bool())] = 0.0
    assert bits_of(sparse.dense()) == bits_of(expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_finite_bit_pattern_survives(dtype):
    size = 8 * dtype.itemsize
    words = np.arange(1 << 16, dtype=np.uint16)
    if size == 32:
        words = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    weight = torch.from_numpy(words).view(dtype)
    weight = weight[weight.isfinite()].reshape(1, -1)
    sparse = SparseWeight.from_dense(weight, BitMask.from_bool(np.ones(weight.shape, bool)))
    assert bits_of(sparse.dense()) == bits_of(weight)
    assert SparseWeight.from_words(sparse.words(), dtype, sparse.mask) == sparse


def test_strides_gradients_and_pruned_nan_do_no_harm():
    weight = torch.randn(5, 7).T.requires_grad_()  # as GPT-2 stores it
    keep = some_mask((7, 5)).to_bool()
    with torch.no_grad():
        weight[tuple(np.argwhere(~keep)[0])] = float("nan")
    sparse = SparseWeight.from_dense(weight, BitMask.from_bool(keep))
    assert torch.equal(sparse.dense(), torch.where(torch.from_numpy(keep), weight.detach(), 0.0))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_survivors_that_are_not_finite_are_refused(dtype, value):
    weight = torch.zeros(3, 11, dtype=dtype)
    weight[2, 10] = float(value)
    with pytest.raises(WireError, match="finite"):
        SparseWeight.from_dense(weight, BitMask.from_bool(np.ones((3, 11), bool)))


MASK = BitMask.from_bool(np.eye(3, dtype=bool))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.zeros(2), "3 survivors needs as many values"),
        (torch.zeros(3, 1), "3 survivors needs as many values"),
        (torch.zeros(3, dtype=torch.float64), r"torch\.float32, .* got torch\.float64"),
        (torch.zeros(6)[::2], "contiguous"),
        (torch.zeros(3, device="meta"), "on the CPU"),
    ],
)
def test_values_of_another_mask_are_refused(values, words):
    with pytest.raises(WireError, match=words):
        SparseWeight(MASK, values)


def test_a_weight_of_another_shape_or_type_is_refused():
    with pytest.raises(WireError, match=r"mask of 3x3 .* weight of shape \(3, 4\)"):
        SparseWeight.from_dense(torch.zeros(3, 4), MASK)
    with pytest.raises(WireError, match="int32"):
        SparseWeight.from_dense(torch.zeros(3, 3, dtype=torch.int32), MASK)


def test_equality_is_of_bits():
    one = SparseWeight(MASK, torch.tensor([0.0, 1.0, 2.0]))
    assert one == SparseWeight(MASK, torch.tensor([0.0, 1.0, 2.0]))
    assert one != SparseWeight(MASK, torch.tensor([-0.0, 1.0, 2.0]))
    assert one != SparseWeight(MASK, torch.tensor([0.0, 1.0, 2.0], dtype=torch.bfloat16))
    other = BitMask.from_bool(np.eye(3, dtype=bool)[::-1])
    assert one != SparseWeight(other, one.values) and one != MASK


SHAPES = {"self_attn.q_proj": (3, 5), "mlp.up_proj": (7, 8), "mlp.down": (1, 1)}


def change(kind, mask, draw, total=3):
    if kind == "mask":
        return mask
    if kind in ("plain", "scaled"):
        keeps = draw.integers(0, total, mask.survivors, endpoint=True, dtype=np.uint32)
        return LinearUpdate(mask, keeps if kind == "scaled" else None, total)
    if kind in QUANTIZED:
        return quantized(mask, draw, *QUANTIZED[kind])
    values = torch.from_numpy(draw.standard_normal(mask.survivors)).to(kind)
    values[::2] = -0.0
    return SparseWeight(mask, values)


def quantized(mask, draw, bits, dtype, symmetric, groups=1):
    half, (rows, columns) = 1 << bits - 1, mask.shape
    zeros = torch.from_numpy(draw.integers(-half, half, (rows, groups), dtype=np.int8))
    zeros = torch.zeros_like(zeros) if symmetric else zeros
    codes = torch.from_numpy(draw.integers(-half, half, mask.shape, dtype=np.int8))
    pruned = ~torch.from_numpy(mask.to_bool())
    codes[pruned] = zeros.repeat_interleave(columns // groups, 1)[pruned]
    scales = torch.from_numpy(draw.uniform(1e-3, 2, (rows, groups))).to(dtype)
    return QuantizedWeight(mask, bits, codes, scales, None if symmetric else zeros)


QUANTIZED = {
    "w4": (4, torch.bfloat16, True),
    "w4 asymmetric": (4, torch.float32, False),
    "w8": (8, torch.float16, False),
}
KINDS = ("mask", "plain", "scaled", *FLOATS, *QUANTIZED)


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


SCALED = encoded("scaled")


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
    assert len(encode_update(sent)) <= most_update_bytes(SHAPES)
    assert [type(one) for one in found.values()] == [type(one) for one in sent.values()]


def test_bytes_are_those_of_the_survivors():
    draw = np.random.default_rng(0)
    mask = BitMask.from_bool(draw.random((64, 256)) < 0.5)
    bare = len(encode_update({"a": mask}))
    for dtype in FLOATS:
        more = len(encode_update({"a": change(dtype, mask, draw)})) - bare
        assert dtype.itemsize * mask.survivors <= more < dtype.itemsize * mask.survivors + 90
    for total, share, bits in ((1, 0.5, 1), (3, 0.9, 1.4), (64, 0.9, 3.6), (300, 0.5, 6.6)):
        keeps = draw.binomial(total, share, mask.survivors).astype(np.uint32)
        data = encode_update({"a": LinearUpdate(mask, keeps, total)})
        assert decode_update(data, {"a": (64, 256)})["a"].keeps.tolist() == keeps.tolist()
        assert len(data) - bare < bits * mask.survivors / 8 + 350


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
    for kind, found in zip(KINDS, map(change, KINDS, [MASK] * 9, [DRAW] * 9), strict=True):
        assert mask_of(found) is MASK and found.shape == MASK.shape
        assert keeps_survivors(found) == (kind in ("mask", "plain"))


DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused(kind):
    check_damage(decode, encoded(kind))
    check_sealed_damage(decode, encoded(kind))


EYE = {
    "a.mask": np.array([0b00010001, 0b1], np.uint8),
    "a.shape": np.array([3, 3], np.uint32),
}
TOTAL = {"a.total": np.array(3, np.uint32)}
COUNTS = np.array([0b111001], np.uint8)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"a.total": np.array(0, np.uint32)}, "linear 'a': .*total must be from 1"),
        ({"a.total": np.array(2, np.uint32), "a.keeps": COUNTS}, "cannot be kept by 3 of 2"),
        ({"a.total": np.array([3], np.uint32)}, r"'a.total' must be uint32\[\], got uint32\[1\]"),
        ({"a.total": np.array(3, np.int32)}, "must be uint32"),
        ({"a.total": np.array(300, np.uint32), "a.keeps": COUNTS}, r"must be uint8\[2, 3\]"),
        (TOTAL | {"a.keeps": COUNTS[:0]}, r"must be uint8\[1\], got uint8\[0\]"),
        (TOTAL | {"a.keeps": COUNTS.astype("i1")}, r"must be uint8\[1\], got int8"),
        (TOTAL | {"a.keeps": COUNTS | 0x40}, "unused bits of packed numbers"),
        ({"a.keeps": COUNTS}, "1 arrays came"),
        (TOTAL | {"a.values": np.ones(3, np.float32)}, "1 arrays came"),
        ({"a.values": np.ones(4, np.float32)}, r"must be float32\[3\], got float32\[4\]"),
        ({"a.values": np.ones(3, np.float64)}, r"must be float32\[3\], got float64"),
        ({"a.values": np.ones(3, np.uint16)}, r"must be float32\[3\], got uint16"),
        ({"a.values": torch.full((3,), torch.inf).bfloat16()}, "linear 'a': .* must be finite"),
        ({"a.values": torch.full((3,), torch.nan).half()}, "linear 'a': .* must be finite"),
        ({"b.mask": EYE["a.mask"]}, "1 arrays came"),
    ],
)
def test_sound_arrays_that_are_no_change_are_refused(parts, words):
    with pytest.raises(WireError, match=words):
        decode_update(encode_arrays(EYE | parts), {"a": (3, 3)})


def test_other_linears_and_shapes_are_refused():
    with pytest.raises(WireError, match="arrays came that were not expected"):
        decode_update(SCALED, dict(list(SHAPES.items())[:2]))
    with pytest.raises(WireError, match=r"'mlp\.up_proj': its mask must be of 8x7"):
        decode_update(SCALED, {**SHAPES, "mlp.up_proj": (8, 7)})
    with pytest.raises(WireError, match="'mlp.gate.mask' is missing"):
        decode_update(SCALED, SHAPES | {"mlp.gate": (1, 1)})


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
