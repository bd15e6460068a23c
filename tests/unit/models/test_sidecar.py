import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file

from fedprune.errors import ModelError
from fedprune.models.sidecar import read_sidecar
from fedprune.wire.masks import BitMask
from tests.support.masks import write_sidecar

PREFIX = "model.layers"
HEADER = {"format": "fedprune-masks", "version": "1", "bit_order": "little", "prefix": PREFIX}
NAME = f"{PREFIX}.0.up.weight"


def masks_of(*blocks):
    return {index: {"mlp.up": BitMask.from_bool(mask)} for index, mask in blocks}


def write_raw(path, tensors=None, **changes):
    """Write a sidecar of one 1x3 mask, 'keep, prune, keep', with parts of it replaced."""
    tensors = {NAME: np.array([0b101], np.uint8)} if tensors is None else tensors
    header = HEADER | {"shapes": {NAME: [1, 3]}, "sparsity": 1 - 2 / 3} | changes
    entry = json.dumps({k: v for k, v in header.items() if v is not None})
    save_file(tensors, path, metadata={"fedprune": entry})
    return path


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_round_trip(tmp_path_factory, data):
    shape = st.tuples(st.integers(1, 9), st.integers(1, 9))
    drawn = data.draw(st.lists(arrays(np.bool_, shape), min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("sidecar") / "masks.safetensors"
    masks = masks_of(*enumerate(drawn, 3))
    write_sidecar(path, masks, PREFIX, {"note": "x"})
    assert read_sidecar(path) == masks


def test_holds_one_bit_a_weight_under_the_full_name(tmp_path):
    path = tmp_path / "masks.safetensors"
    write_sidecar(path, masks_of((2, np.ones((16, 5), bool))), PREFIX)
    stored = load_file(path)
    assert list(stored) == ["model.layers.2.mlp.up.weight"]
    assert stored["model.layers.2.mlp.up.weight"].tolist() == [255] * 10


def test_reads_the_documented_format(tmp_path):
    found = read_sidecar(write_raw(tmp_path / "m"))
    assert found[0]["up"].to_bool().tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "`format` must be 'fedprune-masks', got 'other'"),
        ({"version": "2"}, "`version` must be '1', got '2'"),
        ({"bit_order": None}, "`bit_order` must be 'little', got 'None'"),
        ({"prefix": None}, "`prefix` is missing"),
        ({"prefix": "h"}, "not a weight in the blocks of `h`"),
        ({"shapes": "[1]"}, "`shapes` is not a table"),
        ({"shapes": {NAME: [1]}}, "`shapes` is not a table"),
        ({"shapes": {}}, "`shapes` and tensors differ in model.layers.0.up.weight"),
        ({"shapes": {NAME: [3, 3]}}, "is 2 bytes"),
        ({"shapes": {NAME: [1, 2]}}, "a bit above them is set"),
        ({"shapes": {NAME: [-1, -3]}}, "must be positive"),
        ({"sparsity": 0.5}, "its sparsity is 0.33.*recorded is 0.5"),
        ({"tensors": {NAME: np.array([5], np.int16)}}, "got int16"),
    ],
)
def test_refuses_what_contradicts_itself(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        read_sidecar(write_raw(tmp_path / "m", **changes))


def test_refuses_every_truncation(tmp_path):
    whole = write_raw(tmp_path / "m").read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="damaged"):
            read_sidecar(cut)


def test_missing_file_and_taken_metadata_keys(tmp_path):
    with pytest.raises(ModelError, match="No mask sidecar"):
        read_sidecar(tmp_path / "none")
    with pytest.raises(ModelError, match="may not set version"):
        write_sidecar(tmp_path / "m", {}, PREFIX, {"version": "3"})
    assert list(tmp_path.iterdir()) == []


def test_replaces_an_older_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "m"
    for shape in ((2, 2), (3, 3)):
        write_sidecar(path, masks_of((0, np.ones(shape, bool))), PREFIX)
    assert read_sidecar(path)[0]["mlp.up"].shape == (3, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("entry", ["{", "[1]", "3"])
def test_refuses_metadata_that_is_no_table(tmp_path, entry):
    save_file({}, tmp_path / "m", metadata={"fedprune": entry})
    with pytest.raises(ModelError, match="its metadata is not"):
        read_sidecar(tmp_path / "m")


def test_equal_masks_give_equal_files(tmp_path):
    draw = np.random.default_rng(0)
    masks = {b: {f"l{i}": draw.random((5, 7)) < 0.5 for i in range(4)} for b in range(3)}
    packed = {
        b: {n: BitMask.from_bool(mask) for n, mask in linears.items()}
        for b, linears in masks.items()
    }
    files = []
    for number in range(5):
        write_sidecar(tmp_path / str(number), packed, PREFIX, {"a": "1", "b": "2"})
        files.append((tmp_path / str(number)).read_bytes())
    assert len(set(files)) == 1
