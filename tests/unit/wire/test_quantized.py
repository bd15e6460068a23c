"""Quantised weights: every code arrives, the weight is what compressed-tensors makes of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import WireError
from fedprune.wire.arrays import encode_arrays
from fedprune.wire.changes import decode_update, encode_update
from fedprune.wire.lanes import pack_lanes, packed_length, unpack_lanes
from fedprune.wire.masks import BitMask
from fedprune.wire.quantized import SCALES, QuantizedWeight


def some(shape, bits=4, group=32, symmetric=True, **other):
    """Return random codes; those of pruned weights are their group's zero."""
    dtype, density = other.get("dtype", torch.bfloat16), other.get("density", 1.0)
    draw = torch.Generator().manual_seed(other.get("seed", 0))
    half, (rows, columns) = 1 << bits - 1, shape
    groups = columns // group
    zeros = torch.randint(-half, half, (rows, groups), generator=draw).to(torch.int8)
    zeros = torch.zeros_like(zeros) if symmetric else zeros
    codes = torch.randint(-half, half, shape, generator=draw).to(torch.int8)
    keep = torch.rand(shape, generator=draw) < density
    codes[~keep] = zeros.repeat_interleave(group, 1)[~keep]
    scales = torch.rand(rows, groups, generator=draw).add(0.01).to(dtype)
    mask = BitMask.from_bool(keep.numpy())
    return QuantizedWeight(mask, bits, codes, scales, None if symmetric else zeros)


def there_and_back(change):
    return decode_update(encode_update({"a": change}), {"a": change.shape})["a"]


@given(
    st.sampled_from([(2, 64, 32), (1, 96, 32), (5, 128, 64), (1, 256, 128), (3, 7, 7), (1, 1, 1)]),
    st.sampled_from([4, 8]),
    st.booleans(),
    st.sampled_from(SCALES),
    st.sampled_from([1.0, 0.5, 0.0]),
)
@settings(deadline=None, max_examples=80)
def test_round_trip_and_the_weight_by_plain_products(size, bits, symmetric, dtype, density):
    rows, columns, group = size
    shape = rows, columns
    change = some(shape, bits, group, symmetric, dtype=dtype, density=density)
    found = there_and_back(change)
    assert found == change and found.checksum == change.checksum
    assert found.group_size == group
    dense = found.dense()
    assert dense.dtype == dtype
    for i in range(rows):
        for j in range(columns):
            zero = 0 if symmetric else int(change.zeros[i, j // group])
            steps = torch.tensor(int(change.codes[i, j]) - zero, dtype=dtype)
            assert dense[i, j] == steps * change.scales[i, j // group]
    assert not dense[~torch.from_numpy(change.mask.to_bool())].any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", SCALES)
@pytest.mark.parametrize("group", [32, 128])
def test_the_weight_is_what_compressed_tensors_makes_of_it(bits, symmetric, dtype, group):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    change = some((16, 256), bits, group, symmetric, dtype=dtype)
    args = quantization.QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy="group", group_size=group
    )
    assert torch.equal(change.dense(), dequantize(change.codes, change.scales, change.zeros, args))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_lanes_by_shifts(bits):
    numbers = np.random.default_rng(0).integers(0, 1 << bits, 13, dtype=np.uint8)
    packed = pack_lanes(numbers, bits)
    assert packed.size == packed_length(13, bits)
    whole = sum(int(number) << bits * place for place, number in enumerate(numbers))
    assert int.from_bytes(packed.tobytes(), "little") == whole
    assert unpack_lanes(packed, bits, 13).tolist() == numbers.tolist()


def test_bytes_are_those_of_the_bits():
    def weigh(**form):
        change = some((256, 256), group=128, **form)
        bare = len(encode_update({"a": change.mask}))
        return (len(encode_update({"a": change})) - bare) / 256 / 256 * 8

    assert 4 < weigh() < 4.3
    assert 8 < weigh(bits=8) < 8.3
    assert 4 < weigh(symmetric=False) < 4.4
    assert 2 < weigh(density=0.5) < 2.3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bits": 3}, "4 or 8 bits, got 3"),
        ({"codes": torch.full((4, 64), 8, dtype=torch.int8)}, "from -8 to 7"),
        ({"codes": torch.full((4, 64), -9, dtype=torch.int8)}, "from -8 to 7"),
        ({"zeros": torch.full((4, 2), 9, dtype=torch.int8)}, "from -8 to 7"),
        ({"codes": torch.zeros(4, 63, dtype=torch.int8)}, r"codes .*4x64.*shape \(4, 63\)"),
        ({"codes": torch.zeros(4, 64)}, "codes .*int8.*float32"),
        ({"codes": torch.zeros(64, 4, dtype=torch.int8).T}, "codes .*contiguous"),
        ({"zeros": torch.zeros(4, 1, dtype=torch.int8)}, "zeros"),
        ({"scales": torch.ones(4, 3)}, "groups of 64 inputs must be equal"),
        ({"scales": torch.ones(4, 4)}, "of 32 inputs at least.*got 4"),
        ({"scales": torch.ones(4, 2, dtype=torch.float64)}, "scales"),
        ({"scales": torch.ones(8)}, "scales"),
        ({"scales": torch.zeros(4, 2)}, "positive"),
        ({"scales": torch.full((4, 2), -1.0)}, "positive"),
        ({"scales": torch.full((4, 2), torch.nan)}, "positive"),
        ({"scales": torch.full((4, 2), torch.inf)}, "finite"),
        ({"scales": torch.full((4, 2), 9000.0, dtype=torch.float16)}, "finite"),
        ({"mask": BitMask.from_bool(np.eye(4, 64, dtype=bool))}, "pruned weight must be its"),
    ],
)
def test_parts_that_are_no_weight_are_refused(changed, words):
    change = some((4, 64), symmetric=False, dtype=torch.float32)
    parts = {name: getattr(change, name) for name in ("mask", "bits", "codes", "scales", "zeros")}
    with pytest.raises(WireError, match=words):
        QuantizedWeight(**(parts | changed))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bits": np.array(5, np.uint8)}, "linear 'a': .*4 or 8 bits, got 5"),
        ({"bits": np.array([4], np.uint8)}, r"uint8\[\]"),
        ({"bits": np.array(8, np.uint8)}, r"'a.codes' must be uint8\[256\], got uint8\[128\]"),
        ({"scales": torch.ones(4, 64)}, "32 inputs at least, or one a row, got 64"),
        ({"scales": torch.ones(4, 0)}, "got 0"),
        ({"scales": torch.ones(3, 2)}, r"float32\[4, 2\], got float32\[3, 2\]"),
        ({"scales": np.ones((4, 2))}, "must be float32"),
        ({"scales": torch.zeros(4, 2)}, "positive"),
        ({"zeros": np.zeros(3, np.uint8)}, r"'a.zeros' must be uint8\[4\]"),
        ({"values": np.ones(1, np.float32)}, "arrays came that were not expected|must be float32"),
    ],
)
def test_sound_arrays_that_are_no_weight_are_refused(changed, words):
    change = some((4, 64), symmetric=False, dtype=torch.float32)
    arrays = {f"a.{part}": array for part, array in change.arrays().items()}
    arrays |= {"a.mask": change.mask.bits, "a.shape": np.array((4, 64), np.uint32)}
    arrays |= {f"a.{part}": array for part, array in changed.items()}
    with pytest.raises(WireError, match=words):
        decode_update(encode_arrays(arrays), {"a": (4, 64)})


def test_equality_is_of_codes_and_types():
    one = some((3, 64))
    assert one == some((3, 64)) and one != some((3, 64), seed=1)
    assert one != some((3, 64), symmetric=False) and one != one.mask
    other = QuantizedWeight(one.mask, 4, one.codes, one.scales.float(), None)
    assert one != other and one.checksum != other.checksum
    moved = one.codes.clone()
    moved[0, 0] ^= 1
    assert QuantizedWeight(one.mask, 4, moved, one.scales, None).checksum != one.checksum
