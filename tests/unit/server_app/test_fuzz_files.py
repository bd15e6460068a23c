"""Every reader of files that somebody else may have written, or a disk damaged."""

import json
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import ConfigError, ModelError
from fedprune.models.sidecar import read_sidecar
from fedprune.models.weights import index_files, save_tensors
from fedprune.records import NodeReport
from fedprune.results.ledger import Entry, Ledger
from fedprune.wire.masks import BitMask
from server_app.run_folder import StateFiles
from strategies.state import RunState
from tests.support.fuzzing import anything, fuzzed, survives
from tests.support.masks import write_sidecar

REPORT = NodeReport(3, 8, "north", "c" * 64, "w" * 64, "s" * 64, 2, 256, "cpu", 1 << 34, "v", "")
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
MASKS = {0: {"q": BitMask.from_bool(np.eye(5, dtype=bool))}}
NUMBER = st.integers(-2, 2**70) | st.sampled_from([0, -1, 2**31, 2**63, 10**30])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def written(write) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


def saved() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        ledger = Ledger([Entry(1, "prune", "north", 10, 20, 0.5)])
        files = StateFiles(Path(folder), ledger)
        files.identify({"code": "a", "configuration": "b", "model": "c"})
        state = RunState(clients=[REPORT], active=[3], update=b"update", positions={3: 1}, step=2)
        files.save(state, {"votes": np.arange(12.0), "total": np.int64(3)})
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


WEIGHTS = written(lambda path: save_tensors(path, TENSORS))
SIDECAR = written(lambda path: write_sidecar(path, MASKS, "model.layers"))
STATE = saved()


@st.composite
def headers(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw a safetensors file with a header that is JSON, its length right, its values wrong."""
    length = int.from_bytes(valid[:8], "little")
    text = json.dumps(draw(twisted(json.loads(valid[8 : 8 + length])))).encode()
    return len(text).to_bytes(8, "little") + text + valid[8 + length :]


@st.composite
def twisted(draw: st.DrawFn, value):
    """Draw a JSON value with one place changed, however deep."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: draw(twisted(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(twisted(value[place])), *value[place + 1 :]]
    return draw(JSON)


@given(st.data())
@fuzzed
def test_no_safetensors_file_does_harm(data):
    content = data.draw(anything([WEIGHTS, SIDECAR]) | headers(WEIGHTS))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        found = survives(lambda: index_files([path]), (ModelError,), len(content))
        for stored in (found or {}).values():
            assert stored.map().nbytes == stored.nbytes <= len(content)


def test_a_tensor_of_many_axes_is_refused_without_multiplying_them():
    shape = [2**63] * 200_000
    entry = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    text = json.dumps(entry).encode()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"0000")
        with pytest.raises(ModelError, match="no safetensors file"):
            index_files([path])


@given(st.data())
@fuzzed
def test_no_sidecar_does_harm(data):
    content = data.draw(anything([SIDECAR, WEIGHTS]) | headers(SIDECAR))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "masks.safetensors"
        path.write_bytes(content)
        found = survives(lambda: read_sidecar(path), (ModelError,), len(content))
        assert found is None or all(
            mask.numel for masks in found.values() for mask in masks.values()
        )


# What a strategy's `restore` is guarded against while it reads the sums.
UNREADABLE = (ConfigError, KeyError, ValueError, OSError, EOFError, BadZipFile)


@given(st.data())
@fuzzed
def test_no_state_of_a_run_does_harm(data):
    name = data.draw(st.sampled_from(sorted(STATE)))
    valid = STATE[name]
    choices = anything([valid])
    if name == "run.json":
        choices |= twisted(json.loads(valid)).map(lambda value: json.dumps(value).encode())
    content = data.draw(choices)
    with TemporaryDirectory() as folder:
        for other, known in STATE.items():
            Path(folder, other).write_bytes(known)
        Path(folder, name).write_bytes(content)
        files = StateFiles(Path(folder), Ledger())
        state = survives(files.load, (ConfigError,), len(content) + 10_000)
        if state is not None:
            assert isinstance(state, RunState)
            survives(lambda: dict(files.partial_state()), UNREADABLE, len(content) + 10_000)


def test_the_damage_that_a_zip_file_can_have_is_known():
    assert not issubclass(zlib.error, UNREADABLE)  # sums are stored as they are, not deflated
