"""Survivors and their values: every bit arrives, and nothing that is not finite."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.changes import FLOATS, SparseWeight
from fedprune.wire.masks import BitMask

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
