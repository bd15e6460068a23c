"""Every reader of bytes that come from another machine refuses them or returns what is sound."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.config import Pattern
from fedprune.errors import WireError
from fedprune.wire.changes import (
    FLOATS,
    LinearUpdate,
    SparseWeight,
    decode_update,
    encode_update,
    mask_of,
)
from fedprune.wire.masks import BitMask, decode_block, decode_mask, encode_block, encode_mask
from fedprune.wire.moments import (
    Columns,
    InputMoments,
    Sketch,
    Triangle,
    decode_moments,
    encode_moments,
)
from fedprune.wire.sums import (
    ExactSums,
    InputSums,
    PooledSums,
    decode_pooled,
    decode_sums,
    encode_pooled,
    encode_sums,
)
from tests.support.fuzzing import (
    anything,
    explained,
    fuzzed,
    sealed,
    sealed_block,
    sealed_mask,
    sealed_update,
    survives,
)

SHAPES = {"attn.q": (6, 16), "attn.k": (3, 16), "mlp.up": (5, 8)}
SHAPE = (6, 16)
RNG = np.random.default_rng(5)
HALF, QUARTERS = Pattern(2, 4), Pattern(1, 8)


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
    encode_mask(loose(SHAPE)),
    *(encode_mask(structured(SHAPE, pattern), pattern) for pattern in (HALF, QUARTERS)),
    encode_mask(structured((6, 16), Pattern(8, 16)), Pattern(8, 16)),
]
BLOCKS = [
    encode_block({name: loose(shape) for name, shape in SHAPES.items()}),
    encode_block({name: structured(shape, HALF) for name, shape in SHAPES.items()}, HALF),
]
UPDATES = [
    encode_update({name: loose(shape) for name, shape in SHAPES.items()}),
    encode_update({n: LinearUpdate(loose(shape), None, 7) for n, shape in SHAPES.items()}),
    *(encode_update({n: scaled(s, total) for n, s in SHAPES.items()}) for total in (1, 3, 70_000)),
    *(encode_update({n: sparse(s, dtype) for n, s in SHAPES.items()}) for dtype in FLOATS),
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
CODECS = {
    "mask": (MASKS, sealed_mask, lambda data: decode_mask(data, SHAPE)),
    "block": (BLOCKS, sealed_block, lambda data: decode_block(data, SHAPES)),
    "update": (UPDATES, sealed_update, lambda data: decode_update(data, SHAPES)),
    "sums": (SUMS, sealed, lambda data: decode_sums(data, SHAPES)),
    "moments": (MOMENTS, sealed, lambda data: decode_moments(data, SHAPES)),
    "pooled": (POOLED, sealed, lambda data: decode_pooled(data, SHAPES)),
}
ENCODERS = {
    "block": encode_block,
    "update": encode_update,
    "sums": encode_sums,
    "moments": encode_moments,
    "pooled": encode_pooled,
    "mask": encode_mask,
}


@pytest.mark.parametrize("name", CODECS)
def test_the_messages_to_start_from_are_read(name):
    valid, seal, decode = CODECS[name]
    for data in valid:
        decode(data)
        assert seal(data) == data


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@fuzzed
def test_no_bytes_do_harm(name, data):
    valid, seal, decode = CODECS[name]
    message = data.draw(anything(valid))
    if data.draw(st.integers(0, 3)):
        message = seal(message)
    size = explained(message, SHAPES.values())
    found = survives(lambda: decode(message), (WireError,), size)
    if found is not None:
        check_sound(found)
        again = ENCODERS[name](found)
        assert len(again) <= size + 4096


def check_sound(found) -> None:
    """Check what was read of something that was accepted."""
    if isinstance(found, BitMask):
        assert found.shape == SHAPE
    elif isinstance(found, dict):
        assert {name: mask_of(change).shape for name, change in found.items()} == SHAPES
        assert list(found) == list(SHAPES)
        for change in found.values():
            if isinstance(change, SparseWeight):
                assert change.dense().isfinite().all()
            elif isinstance(change, LinearUpdate):
                factors = change.factors()
                assert factors is None or (0 <= factors.min() and factors.max() <= 1)
    elif isinstance(found, SparseWeight):
        assert found.shape == SHAPE and found.dense().isfinite().all()
    else:
        check_inputs(found)


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
