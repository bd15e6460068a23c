"""Safetensors files, read by mapping and written tensor by tensor; the library is the oracle."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fedprune.errors import ModelError
from fedprune.models.weights import DTYPES, TensorForm, index_files, write_file, write_model
from tests.support.masks import equal_bits


def tensors():
    draw = torch.Generator().manual_seed(0)
    found = {
        name: (100 * torch.randn(3, 5, generator=draw)).to(dtype) for name, dtype in DTYPES.items()
    }
    odd = found["U8"][0].clone()
    return found | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "odd": odd}


def forms(state):
    return [TensorForm(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]


def test_maps_what_the_library_wrote(tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors")
    found = index_files([tmp_path / "a.safetensors"])
    assert equal_bits({name: place.map() for name, place in found.items()}, tensors())
    for place in found.values():
        place.prefetch()


def test_reading_ahead_of_a_file_that_is_gone_is_left_to_who_reads_it(tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors")
    place = index_files([tmp_path / "a.safetensors"])["scalar"]
    (tmp_path / "a.safetensors").unlink()
    place.prefetch()
    with pytest.raises(ModelError, match="cannot be read any more"):
        place.map()


def test_the_library_reads_what_is_written_tensor_by_tensor(tmp_path):
    state = tensors() | {"transposed": torch.randn(4, 3).T}
    write_file(tmp_path / "a.safetensors", forms(state), state.__getitem__, {"key": "value"})
    assert equal_bits(load_file(tmp_path / "a.safetensors"), state)
    found = index_files([tmp_path / "a.safetensors"])
    assert equal_bits({name: place.map() for name, place in found.items()}, state)


def test_a_model_becomes_shards_with_an_index_that_the_library_reads(tmp_path):
    state = {f"t{number}": torch.full((10,), float(number)) for number in range(7)}
    asked = []
    write_model(tmp_path, forms(state), lambda name: asked.append(name) or state[name], 100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)
    ]
    assert asked == list(state) and index["metadata"]["total_size"] == 7 * 40
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], state[name])
    assert index_files(files).keys() == state.keys()


def test_a_tensor_larger_than_a_shard_has_a_file_of_its_own(tmp_path):
    state = {"small": torch.zeros(2), "large": torch.zeros(99), "last": torch.zeros(2)}
    write_model(tmp_path, forms(state), state.__getitem__, 16)
    assert [len(load_file(path)) for path in sorted(tmp_path.glob("*.safetensors"))] == [1, 1, 1]


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, dtype=torch.float16)])
def test_a_tensor_of_another_form_than_announced_is_refused(tmp_path, other):
    with pytest.raises(ValueError, match="'a' was announced as"):
        write_file(tmp_path / "a", forms({"a": torch.zeros(2)}), lambda _: other)


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    place = index_files([tmp_path / "a.safetensors"])["a"]
    place.map().zero_()
    assert torch.equal(place.map(), torch.ones(3))


def test_a_name_in_two_files(tmp_path):
    for name in "ab":
        save_file({"twice": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ModelError, match="'twice' is in 'a' and in 'b'"):
        index_files([tmp_path / "a", tmp_path / "b"])


def test_a_file_that_shrank_since(tmp_path):
    save_file({"a": torch.ones(5000)}, tmp_path / "a")
    place = index_files([tmp_path / "a"])["a"]
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be read any more.*Leave a model's files alone"):
        place.map()


def written(path, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    return path


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "truncated"),
        (b"{", "cannot be loaded"),
        (b"[" * 100_000, "cannot be loaded"),
        ([1], "cannot be loaded"),
        ({"a": 3}, "cannot be loaded"),
        (entry(dtype="F8_E4M3"), "type F8_E4M3 cannot be pruned"),
        (entry(dtype=["F32"]), "cannot be loaded"),
        (entry(shape=[5]), "truncated or its header is damaged"),
        (entry(shape=[-4]), "damaged"),
        (entry(shape=[True, 4]), "damaged"),
        (entry(shape="4"), "damaged"),
        (entry(data_offsets=[16, 32]), "truncated"),
        (entry(data_offsets=[-16, 0]), "damaged"),
        (entry(data_offsets=[0.0, 16.0]), "damaged"),
        (entry(data_offsets=[0]), "damaged"),
        (entry(data_offsets=[10**30, 10**30 + 16]), "truncated"),
    ],
)
def test_headers_that_cannot_be_true(tmp_path, header, message):
    with pytest.raises(ModelError, match=message):
        index_files([written(tmp_path / "a", header)])


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded.*Copy the whole model folder"):
        index_files([tmp_path / "gone"])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    save_file({"a": torch.ones(4), "b": torch.zeros(2, 3)}, folder / "whole")
    raw = bytearray((folder / "whole").read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "damaged").write_bytes(raw)
    try:
        found = index_files([folder / "damaged"])
    except ModelError:
        return
    for place in found.values():
        assert place.map().numel() * place.dtype.itemsize == place.nbytes <= len(raw)
