"""Every reader of bytes that come from another machine refuses them or returns what is sound."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.config import Pattern
from fedprune.errors import WireError
from fedprune.wire.arrays import ArraySpec, decode_arrays, encode_arrays
from fedprune.wire.changes import (
    FLOATS,
    LinearUpdate,
    SparseWeight,
    decode_update,
    encode_update,
    mask_of,
)
from fedprune.wire.masks import BitMask, decode_masks, encode_masks
from fedprune.wire.moments import (
    Columns,
    InputMoments,
    Sketch,
    Triangle,
    decode_moments,
    encode_moments,
)
from fedprune.wire.quantized import QuantizedWeight
from fedprune.wire.sums import (
    ExactSums,
    InputSums,
    PooledSums,
    decode_pooled,
    decode_sums,
    encode_pooled,
    encode_sums,
)
from tests.support.damage import sealed
from tests.support.fuzzing import anything, explained, fuzzed, rearranged, survives

SHAPES = {"attn.q": (6, 16), "attn.k": (3, 16), "mlp.up": (5, 8)}
RNG = np.random.default_rng(5)
QUARTERS = Pattern(1, 8)


def structured(shape, pattern: Pattern) -> BitMask:
    groups = RNG.random((shape[0] * shape[1] // pattern.m, pattern.m))
    return BitMask.from_bool((groups.argsort(axis=1) < pattern.n).reshape(shape))


def loose(shape) -> BitMask:
    return BitMask.from_bool(RNG.random(shape) < 0.5)


def sparse(shape, dtype, mask=None) -> SparseWeight:
    weight = torch.from_numpy(RNG.standard_normal(shape)).to(dtype)
    return SparseWeight.from_dense(weight, mask or loose(shape))


def scaled(shape, total: int) -> LinearUpdate:
    mask = loose(shape)
    keeps = RNG.integers(1, total + 1, mask.survivors).astype(np.min_scalar_type(total))
    return LinearUpdate(mask, keeps, total)


def quantized(shape, bits: int, symmetric: bool) -> QuantizedWeight:
    half, mask = 1 << bits - 1, loose(shape)
    zeros = RNG.integers(-half, half, (shape[0], 1), dtype=np.int8) * (not symmetric)
    zeros = zeros.astype(np.int8)
    codes = np.where(mask.to_bool(), RNG.integers(-half, half, shape, dtype=np.int8), zeros)
    scales = torch.from_numpy(RNG.random((shape[0], 1)) + 0.1).bfloat16()
    lifted = None if symmetric else torch.from_numpy(zeros)
    return QuantizedWeight(mask, bits, torch.from_numpy(codes), scales, lifted)


def exact(width: int) -> ExactSums:
    sums = ExactSums(width)
    for scale in (1e-12, 1.0, 1e9):
        sums.add((scale * RNG.random(width)).astype(np.float32))
    return sums


def moments(width: int, form: str):
    vectors = RNG.standard_normal((width, 3)).astype(np.float32)
    matrix = vectors @ vectors.T
    if form == "columns":
        return Columns(np.diag(matrix).copy())
    if form in ("eigen", "nystrom"):
        return Sketch(vectors, np.diag(matrix).copy(), form)
    return Triangle.from_matrix(matrix, form)


def inputs(make) -> list:
    return [make(("attn.q", "attn.k"), 16), make(("mlp.up",), 8)]


MASKS = [
    encode_masks({name: loose(shape) for name, shape in SHAPES.items()}),
    encode_masks({name: structured(shape, QUARTERS) for name, shape in SHAPES.items()}),
]
UPDATES = [
    encode_update({name: loose(shape) for name, shape in SHAPES.items()}),
    encode_update({n: LinearUpdate(loose(shape), None, 7) for n, shape in SHAPES.items()}),
    *(encode_update({n: scaled(s, total) for n, s in SHAPES.items()}) for total in (1, 3, 70_000)),
    *(encode_update({n: sparse(s, dtype) for n, s in SHAPES.items()}) for dtype in FLOATS),
    encode_update({n: quantized(s, 4, True) for n, s in SHAPES.items()}),
    encode_update({n: quantized(s, 8, False) for n, s in SHAPES.items()}),
]
SUMS = [encode_sums(inputs(lambda names, d: InputSums(names, exact(d), 9)))]
MOMENTS = [
    encode_moments(inputs(lambda names, d, form=form: InputMoments(names, 9, moments(d, form))))
    for form in ("float32", "float16", "eigen", "nystrom", "columns")
]
POOLED = [
    encode_pooled(
        inputs(lambda n, d: PooledSums(n, RNG.random(d).astype(np.float32), 9, (1,) * len(n)))
    )
]
ARRAYS = {
    "noise": RNG.integers(0, 256, 40, dtype=np.uint8),
    "zeros": np.zeros((3, 50), dtype=np.uint8),
    "one": np.array(5, dtype=np.int64),
    "floats": RNG.random((2, 3)),
}
EXPECTED = {name: ArraySpec(str(array.dtype), array.shape) for name, array in ARRAYS.items()}
CODECS = {
    "arrays": ([encode_arrays(ARRAYS)], lambda data: decode_arrays(data, EXPECTED)),
    "masks": (MASKS, lambda data: decode_masks(data, SHAPES)),
    "update": (UPDATES, lambda data: decode_update(data, SHAPES)),
    "sums": (SUMS, lambda data: decode_sums(data, SHAPES)),
    "moments": (MOMENTS, lambda data: decode_moments(data, SHAPES)),
    "pooled": (POOLED, lambda data: decode_pooled(data, SHAPES)),
}
ENCODERS = {
    "arrays": encode_arrays,
    "masks": encode_masks,
    "update": encode_update,
    "sums": encode_sums,
    "moments": encode_moments,
    "pooled": encode_pooled,
}


@pytest.mark.parametrize("name", CODECS)
def test_the_messages_to_start_from_are_read(name):
    valid, decode = CODECS[name]
    for data in valid:
        decode(data)
        assert sealed(data) == data


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@fuzzed
def test_no_bytes_do_harm(name, data):
    valid, decode = CODECS[name]
    message = data.draw(st.one_of(anything(valid), rearranged(valid)))
    if data.draw(st.integers(0, 3)):
        message = sealed(message)
    size = explained(message, SHAPES.values())
    found = survives(lambda: decode(message), (WireError,), size)
    if found is not None:
        check_sound(found)
        again = ENCODERS[name](found)
        assert len(again) <= size + 4096


def check_sound(found) -> None:
    """Check what was read of something that was accepted."""
    if isinstance(found, list):
        check_inputs(found)
    elif "noise" in found:
        assert {n: ArraySpec(str(a.dtype), a.shape) for n, a in found.items()} == EXPECTED
    else:
        assert {name: mask_of(change).shape for name, change in found.items()} == SHAPES
        assert list(found) == list(SHAPES)
        for change in found.values():
            if isinstance(change, SparseWeight | QuantizedWeight):
                assert change.dense().isfinite().all()
            elif isinstance(change, LinearUpdate):
                factors = change.factors()
                assert factors is None or (0 <= factors.min() and factors.max() <= 1)


def check_inputs(found) -> None:
    """Check that every linear is there once, with finite figures of its width."""
    names = [name for group in found for name in group.linears]
    assert sorted(names) == sorted(SHAPES)
    for group in found:
        width = SHAPES[group.linears[0]][1]
        assert 1 <= group.tokens < 2**63
        if isinstance(group, InputSums):
            assert group.sums.size == width and np.isfinite(group.sums.to_float64()).all()
        elif isinstance(group, PooledSums):
            assert group.sums.shape == (width,) and np.isfinite(group.sums).all()
        else:
            assert group.body.width == width
