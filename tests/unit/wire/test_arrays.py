"""Named arrays: a safetensors file in its one form, and nothing but what is expected is read."""

import json
import zlib

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedprune.errors import WireError
from fedprune.wire.arrays import (
    Arrays,
    ArraySpec,
    array_names,
    decode_arrays,
    encode_arrays,
    most_bytes,
)
from tests.support.damage import CHECKSUM, check_damage, check_sealed_damage, message, split

DTYPES = (
    *("uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32"),
    *("uint64", "int64", "float64"),
)
NUMPY = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
)
RNG = np.random.default_rng(0)
SENT = {
    "mlp.up.squares": RNG.random((2, 3), dtype=np.float32),
    "mlp.up.tokens": np.array(7, dtype=np.int64),
    "noise": RNG.integers(0, 256, 50, dtype=np.uint8),
    "zeros": np.zeros(90, dtype=np.uint8),
}
EXPECTED = {name: ArraySpec(str(array.dtype), array.shape) for name, array in SENT.items()}
DATA = encode_arrays(SENT)


def decode(data):
    return decode_arrays(data, EXPECTED)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text('ab.\u00e9"\\ ', max_size=8), NUMPY))
def test_any_arrays_come_back(sent):
    expected = {name: ArraySpec(str(array.dtype), array.shape) for name, array in sent.items()}
    data = encode_arrays(sent)
    assert len(data) <= most_bytes(expected)
    assert array_names(data) == set(sent)
    for received in (data, memoryview(b"x" + data)[1:]):
        found = decode_arrays(received, expected)
        assert list(found) == list(sent)
        for name, array in sent.items():
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes()
    assert encode_arrays(dict(reversed(sent.items()))) == data


def test_bytes_are_those_of_safetensors():
    plain = {name: array for name, array in SENT.items() if name != "zeros"}
    data = encode_arrays(plain)
    metadata = {"crc32": data[CHECKSUM].decode()}
    assert safetensors.numpy.save(plain, metadata) == data
    halves = {"b": torch.randn(3, 5).bfloat16(), "a": torch.randn(4).half()}
    data = encode_arrays(halves)
    metadata = {"crc32": data[CHECKSUM].decode()}
    assert safetensors.torch.save(halves, metadata) == data
    (found,) = decode_arrays(
        encode_arrays({"b": halves["b"]}), {"b": ArraySpec("bfloat16", (3, 5))}
    ).values()
    assert torch.equal(torch.from_numpy(found.copy()).view(torch.bfloat16), halves["b"])


def test_strides_byte_orders_and_gradients_do_not_show():
    array = RNG.random((4, 6), dtype=np.float32)
    data = encode_arrays({"a": array})
    assert encode_arrays({"a": array.astype(">f4")}) == data
    assert encode_arrays({"a": array.T.copy().T}) == data
    assert encode_arrays({"a": torch.from_numpy(array).requires_grad_()}) == data


def test_packed_arrays_are_raw_deflate_and_noise_costs_nothing():
    order = RNG.random((1 << 14, 4)).argsort(axis=1)
    sent = {
        "2:4": np.packbits(order < 2, bitorder="little"),
        "half": RNG.integers(0, 256, 1 << 14, dtype=np.uint8),
        "words": RNG.integers(0, 256, (2, 4096), dtype=np.uint32),
        "values": np.zeros(4096, dtype=np.float32),
        "digits": np.stack([RNG.integers(3, 7, 4096), np.zeros(4096), np.zeros(4096)]).astype("u1"),
    }
    stored = safetensors.numpy.load(encode_arrays(sent))
    labels = {"2:4": "2:4.deflate.uint8.8192", "digits": "digits.deflate.uint8.3x4096"}
    labels["words"] = "words.deflate.uint32.2x4096"
    assert set(stored) == {"half", "values", *labels.values()}
    for name, label in labels.items():
        found = zlib.decompress(stored[label].tobytes(), -zlib.MAX_WBITS)
        planes = sent[name].reshape(-1, 1).view(np.uint8).T
        assert found == planes.tobytes()
    assert stored[labels["2:4"]].size < 0.67 * sent["2:4"].size
    assert stored[labels["digits"]].size < 4096 / 4 + 200
    assert stored[labels["words"]].size < 2 * 4096 + 400


def test_arrays_are_read_only_and_share_memory():
    data = bytearray(encode_arrays({"noise": SENT["noise"]}))
    found = decode_arrays(memoryview(data), {"noise": EXPECTED["noise"]})["noise"]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
    data[-50:] = bytes(50)
    assert not found.any()


def test_every_damage_is_refused():
    check_damage(decode, DATA)
    check_sealed_damage(decode, DATA)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise):
    with pytest.raises(WireError):
        decode(noise)


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"mlp.up.tokens": ArraySpec("uint64")}, r"tokens' must be uint64\[\], got int64\[\]"),
        ({"mlp.up.squares": ArraySpec("float32", (3, 2))}, r"must be float32\[3, 2\], got float32"),
        ({"noise": ArraySpec("uint8", (49,))}, r"uint8\[49\], got uint8\[50\]"),
        ({"noise": ArraySpec("uint8", (5, 10))}, r"uint8\[5, 10\], got uint8\[50\]"),
        ({"zeros": ArraySpec("uint8", (91,))}, r"'zeros' must be uint8\[91\], got uint8\[90\]"),
        (
            {"zeros": ArraySpec("uint8", (9, 10))},
            r"'zeros' must be uint8\[9, 10\], got uint8\[90\]",
        ),
        ({"zeros": ArraySpec("int8", (90,))}, r"'zeros' must be int8\[90\], got uint8\[90\]"),
        ({"other": ArraySpec("uint8", (1,))}, r"'other' is missing, expected uint8\[1\]"),
    ],
)
def test_another_expectation_is_named(expected, words):
    with pytest.raises(WireError, match=words):
        decode_arrays(DATA, EXPECTED | expected)


def test_more_than_expected_is_refused_and_not_quoted():
    data = encode_arrays(SENT | {"\x1b[2J": np.zeros(1)})
    with pytest.raises(WireError, match="1 arrays came that were not expected") as caught:
        decode(data)
    assert "\x1b" not in str(caught.value)
    small = {"zeros": EXPECTED["zeros"]}
    with pytest.raises(WireError, match="header of .* bytes at most"):
        decode_arrays(DATA, small)


HEADER, BODY = split(DATA)
ENTRIES = {name: one for name, one in json.loads(HEADER).items() if name != "__metadata__"}
NOISE = ENTRIES["noise"]


def changed(name, **fields):
    return ENTRIES | {name: ENTRIES[name] | fields}


PACKED = "zeros.deflate.uint8.90"
HOSTILE = {
    "no JSON": b"{" * 64,
    "deep": b"[" * 600,
    "a list": b"[1,2,3]  ",
    "no metadata": HEADER.replace(b"__metadata__", b"_other__data_"),
    "other metadata": HEADER.replace(b'"crc32"', b'"crc33"'),
    "more metadata": HEADER.replace(b'"},', b'","a":""},', 1),
    "long checksum": HEADER.replace(b'"},', b'00"},', 1),
    "white space": HEADER.replace(b":7", b": 7") if b":7" in HEADER else HEADER + b" " * 8,
    "padding": HEADER.rstrip() + b" " * 9,
    "escapes": HEADER.replace(b"noise", b"n\\u006fise"),
    "surrogates": HEADER.replace(b"noise", b"\\ud800"),
    "not UTF-8": HEADER.replace(b"noise", b"n\xffise"),
    "twice": HEADER.replace(b'"noise"', b'"zeros.deflate.uint8.90"'),
    "unsorted": dict(reversed(ENTRIES.items())),
    "overlapping": changed("noise", data_offsets=[0, 50]),
    "a gap": changed("noise", data_offsets=[one + 8 for one in NOISE["data_offsets"]]),
    "backwards": changed("noise", data_offsets=NOISE["data_offsets"][::-1]),
    "beyond": changed("noise", shape=[1 << 60], data_offsets=[NOISE["data_offsets"][0], 1 << 60]),
    "a wrong size": changed("noise", shape=[40]),
    "negative": changed("noise", shape=[-5, -10]),
    "fractions": changed("noise", shape=[50.0]),
    "truths": changed("noise", shape=[50, True]),
    "texts": changed("noise", shape="50"),
    "no shape": {"noise": {"dtype": "U8"}},
    "nothing": {"noise": None},
    "a number": {"noise": 5},
    "another type": changed("noise", dtype="BOOL"),
    "no type": changed("noise", dtype=[]),
    "more fields": changed("noise", more=1),
    "packed twice": HEADER.replace(b".90", b".90.deflate.uint8.90"),
    "packed as a float": HEADER.replace(b".uint8.90", b".float32.30"),
    "packed as nothing": HEADER.replace(b".uint8.90", b""),
    "packed without a type": HEADER.replace(b".uint8.90", b"."),
    "packed as other digits": HEADER.replace(b".90", b".090"),
    "packed, but not shorter": HEADER.replace(b".uint8.90", b".uint8.3"),
    "packed in another type": changed(PACKED, dtype="I8"),
    "too many axes": changed("noise", shape=[50, *[1] * 8]),
    "large axes": changed("noise", shape=[1 << 63, 0]),
    "numbers without end": HEADER.replace(b"[50]", b"[" + b"9" * 60 + b"]"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_only_the_one_header_of_arrays_is_read(name):
    with pytest.raises(WireError, match="starts with their header|bytes at most|must have"):
        decode(message(HOSTILE[name], BODY))


def test_an_array_cannot_be_there_packed_and_not():
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    with pytest.raises(WireError, match="there twice, packed and not"):
        decode(message({"zeros": entry, PACKED: entry}))


def test_announced_sizes_take_no_memory():
    for size in (1 << 20, 1 << 40, (1 << 64) - 1):
        with pytest.raises(WireError, match=f"this one would have {size}"):
            decode(size.to_bytes(8, "little") + DATA[8:])
        with pytest.raises(WireError, match="would have"):
            array_names(max(size, 1 << 23).to_bytes(8, "little") + DATA[8:])
    many = {f"a{number}": np.zeros(0) for number in range(1000)}
    with pytest.raises(WireError, match="bytes at most"):
        decode(encode_arrays(many))


def test_a_flood_ends_where_the_expected_bytes_end():
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    flood = (coder.compress(bytes(1 << 16)) + coder.flush())[:89]
    for packed, words in (
        (flood, "must have 90 bytes when unpacked"),
        (flood[:80], "must have 90 bytes"),
        (b"\xff" * 9, "cannot be unpacked"),
        (b"", "must have 90 bytes"),
    ):
        entry = {"dtype": "U8", "shape": [len(packed)], "data_offsets": [0, len(packed)]}
        sent = message({PACKED: entry}, packed)
        with pytest.raises(WireError, match=words):
            decode_arrays(sent, {"zeros": EXPECTED["zeros"]})


def test_arrays_one_by_one():
    found = Arrays(DATA, SENT)
    assert found.names == set(SENT)
    assert found.announced("noise") == EXPECTED["noise"]
    assert found.announced("zeros") == EXPECTED["zeros"]
    with pytest.raises(WireError, match="'other' is missing"):
        found.announced("other")
    found.take("noise", EXPECTED["noise"])
    with pytest.raises(WireError, match="3 arrays came"):
        found.finish()
    with pytest.raises(WireError, match="'noise' is missing"):
        found.take("noise", EXPECTED["noise"])


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("a", np.zeros(3, dtype=bool), "'a' must be one of uint8, .* got bool"),
        ("a", torch.zeros(3, dtype=torch.complex64), "got complex64"),
        ("a.deflate.b", np.zeros(3), "cannot be called 'a.deflate.b'"),
        ("__metadata__", np.zeros(3), "cannot be called"),
    ],
)
def test_what_cannot_be_sent(name, array, words):
    with pytest.raises(WireError, match=words):
        encode_arrays({name: array})


def test_strided_bytes_are_refused():
    with pytest.raises(WireError, match="contiguous"):
        decode(memoryview(bytes(2 * len(DATA)))[::2])


def test_other_releases_say_what_to_do():
    with pytest.raises(WireError, match="Run the same release of fedprune everywhere"):
        decode(b"FPUP\x02\x00" + DATA)
    with pytest.raises(WireError, match="Run the same release of fedprune everywhere"):
        decode(safetensors.numpy.save(SENT))
