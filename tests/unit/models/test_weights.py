"""Safetensors files, read by mapping and written tensor by tensor; the library is the oracle."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedprune.errors import ModelError
from fedprune.models.weights import DTYPES, index_files, prefetch, save_tensors
from tests.support.masks import equal_bits


def tensors():
    draw = torch.Generator().manual_seed(0)
    found = {
        name: (100 * torch.randn(3, 5, generator=draw)).to(dtype) for name, dtype in DTYPES.items()
    }
    odd = found["U8"][0].clone()
    return found | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "odd": odd}


def test_maps_what_the_library_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr("fedprune.models.weights._LEAST_PREFETCHED", 0)
    save_file(tensors(), tmp_path / "a.safetensors")
    found = index_files([tmp_path / "a.safetensors"])
    assert equal_bits({name: place.map() for name, place in found.items()}, tensors())
    prefetch(found.values())


def test_reading_ahead_of_a_file_that_is_gone_is_left_to_who_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("fedprune.models.weights._LEAST_PREFETCHED", 0)
    save_file(tensors(), tmp_path / "a.safetensors")
    place = index_files([tmp_path / "a.safetensors"])["scalar"]
    (tmp_path / "a.safetensors").unlink()
    prefetch([place])
    with pytest.raises(ModelError, match="cannot be read any more"):
        place.map()


def test_what_is_saved_is_whole_or_absent(tmp_path):
    state = tensors() | {"transposed": torch.randn(4, 3).T}
    path = tmp_path / "a.safetensors"
    path.write_text("older")
    save_tensors(path, state, {"key": "value"}, mode=0o640)
    assert equal_bits(load_file(path), state)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"key": "value"}
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(RuntimeError):
        save_tensors(path, {"bad": torch.zeros(3, device="meta")})
    assert equal_bits(load_file(path), state)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_saving_mapped_tensors_takes_no_memory(tmp_path):
    """Measured in a process of its own: peaks of this one say nothing."""
    code = """
import resource, sys, torch
from pathlib import Path
from fedprune.models.weights import index_files, prefetch, save_tensors
folder = Path(sys.argv[1])
torch.ones(30_000_000).numpy().tofile(folder / "raw")
whole = torch.from_file(str(folder / "raw"), size=30_000_000)
save_tensors(folder / "a", {str(n): whole[n * 3_000_000 : (n + 1) * 3_000_000] for n in range(10)})
del whole
import psutil
before = psutil.Process().memory_full_info().uss
for name, place in index_files([folder / "a"]).items():
    place.map().sum()
print(psutil.Process().memory_full_info().uss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 30_000_000  # of 120


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
        (b"{", "no safetensors file"),
        (b"[" * 100_000, "no safetensors file"),
        ([1], "no safetensors file"),
        ({"a": 3}, "no safetensors file"),
        (entry(dtype="F8_E4M3", shape=[16]), "type F8_E4M3 cannot be pruned"),
        (entry(dtype=["F32"]), "no safetensors file"),
        (entry(shape=[5]), "no safetensors file"),
        (entry(shape=[-4]), "no safetensors file"),
        (entry(shape=[True, 4]), "no safetensors file"),
        (entry(shape="4"), "no safetensors file"),
        (entry(data_offsets=[16, 32]), "no safetensors file"),
        (entry(data_offsets=[-16, 0]), "no safetensors file"),
        (entry(data_offsets=[0.0, 16.0]), "no safetensors file"),
        (entry(data_offsets=[0]), "no safetensors file"),
        (entry(data_offsets=[10**30, 10**30 + 16]), "no safetensors file"),
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
