"""What a smaller model says of the dense one that it was: which of its units remain."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedprune.cli import main
from fedprune.errors import ModelError
from fedprune.models.kept import KEPT, is_kept, read_kept
from fedprune.models.loading import loaded_from
from fedprune.models.mixture import find_mixture, without_experts
from fedprune.models.reshape import Reshape, apply_kept, export_reshaped
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask
from tests.support.architectures import tiny_model
from tests.support.folders import save_folder

WIDTH = 48
NEURONS = {0: [0, 3, 5, 7], 1: [1, 2, 46, 47], 2: [8, 9, 10, 11]}


def neurons(blocks=None):
    """Keep other neurons in each block of a Llama, as runs do."""

    def cut(name, tensor):
        block = name.split(".")[2] if "layers" in name else ""
        if "gate_proj" in name or "up_proj" in name:
            return tensor[NEURONS[int(block)]]
        return tensor[:, NEURONS[int(block)]] if "down_proj" in name else tensor

    return Reshape({"intermediate_size": 4}, blocks, cut)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("blocks", [None, (0, 2)])
def test_it_names_the_units_that_remain_and_with_the_dense_model_is_the_smaller_one(
    tmp_path, blocks
):
    loaded = tiny_model("llama", torch.bfloat16)
    base = save_folder(loaded, tmp_path / "base")
    export_reshaped(loaded, {}, neurons(blocks), tmp_path / "model")
    header, remains = read_kept(tmp_path / "model" / KEPT)
    assert header["survivors"] == "kept" and header["blocks"] == list(blocks or (0, 1, 2))
    dense, small = loaded.model.state_dict(), weights(tmp_path / "model")
    for new, old in enumerate(header["blocks"]):
        for linear, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            (found,) = remains[f"model.layers.{old}.mlp.{linear}.weight"].items()
            assert (found[0], torch.nonzero(found[1]).flatten().tolist()) == (dim, NEURONS[old])
            # Anybody can check it by three lines, without this package.
            whole = dense[f"model.layers.{old}.mlp.{linear}.weight"]
            part = whole[found[1]] if dim == 0 else whole[:, found[1]]
            assert torch.equal(small[f"model.layers.{new}.mlp.{linear}.weight"], part)
    assert len(remains) == 3 * len(header["blocks"])

    assert main(["apply", str(base), str(tmp_path / "model"), str(tmp_path / "again")]) == 0
    for name in ("model.safetensors", "config.json", str(KEPT)):
        expected = (tmp_path / "model" / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == expected


def test_experts_that_remain_are_named(tmp_path):
    loaded = tiny_model("mixtral")
    base = save_folder(loaded, tmp_path / "base")
    keep = dict.fromkeys(find_mixture(loaded).experts, (1, 2))
    export_reshaped(loaded, {}, without_experts(loaded, keep), tmp_path / "model")
    _, remains = read_kept(tmp_path / "model" / KEPT)
    for vectors in remains.values():
        (vector,) = vectors.values()
        assert torch.nonzero(vector).flatten().tolist() == [1, 2]
    assert any("gate_up_proj" in name for name in remains)
    apply_kept(base, tmp_path / "model" / KEPT, tmp_path / "again")
    assert weights(tmp_path / "model").keys() == weights(tmp_path / "again").keys()
    for name, tensor in weights(tmp_path / "model").items():
        assert torch.equal(tensor, weights(tmp_path / "again")[name])


def test_biases_that_remain_are_named(tmp_path):
    loaded = tiny_model("opt")

    def cut(name, tensor):
        if "fc1" in name:
            return tensor[4:12]
        return tensor[:, 4:12] if "fc2.weight" in name else tensor

    export_reshaped(loaded, {}, Reshape({"ffn_dim": 8}, None, cut), tmp_path / "model")
    _, remains = read_kept(tmp_path / "model" / KEPT)
    (vector,) = remains["model.decoder.layers.0.fc1.bias"].values()
    assert torch.nonzero(vector).flatten().tolist() == list(range(4, 12))


def refitted(loaded):
    """New values for what remains, in one matrix."""
    weight = loaded.weight(1, "mlp.down_proj")
    keep = BitMask.from_bool(torch.ones_like(weight, dtype=torch.bool).numpy())
    return {1: {"mlp.down_proj": SparseWeight.from_dense(2 * weight, keep)}}


def test_new_values_are_told_and_not_made_up(tmp_path):
    loaded = tiny_model("llama")
    base = save_folder(loaded, tmp_path / "base")
    export_reshaped(loaded, refitted(loaded), neurons(), tmp_path / "model")
    header, remains = read_kept(tmp_path / "model" / KEPT)
    assert header["survivors"] == "changed"
    assert (
        torch.nonzero(remains["model.layers.1.mlp.down_proj.weight"][1]).flatten().tolist()
        == (NEURONS[1])
    )
    with pytest.raises(ModelError, match="was refitted after units went"):
        apply_kept(base, tmp_path / "model" / KEPT, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_mask_that_only_zeroes_what_goes_changes_no_value(tmp_path):
    loaded = tiny_model("llama")
    shape = loaded.weight(1, "mlp.down_proj").shape
    living = torch.isin(torch.arange(WIDTH), torch.tensor(NEURONS[1])).expand(shape)
    changes = {1: {"mlp.down_proj": BitMask.from_bool(living.numpy())}}
    export_reshaped(loaded, changes, neurons(), tmp_path / "model")
    assert read_kept(tmp_path / "model" / KEPT)[0]["survivors"] == "kept"


def test_sizes_that_are_no_selection_count_as_new_values(tmp_path):
    loaded = tiny_model("llama")

    def mixed(name, tensor):
        if "gate_proj" in name or "up_proj" in name:
            return tensor.reshape(4, 12, -1)[:, 0]
        return tensor.flip(1)[:, :4] if "down_proj" in name else tensor  # in another order

    export_reshaped(loaded, {}, Reshape({"intermediate_size": 4}, None, mixed), tmp_path / "model")
    header, remains = read_kept(tmp_path / "model" / KEPT)
    assert header["survivors"] == "changed"
    assert not any("down_proj" in name for name in remains)


def test_other_models_and_damage_are_refused(tmp_path):
    loaded = tiny_model("llama")
    base = save_folder(loaded, tmp_path / "base")
    export_reshaped(loaded, {}, neurons(), tmp_path / "model")
    kept, header = tmp_path / "model" / KEPT, read_kept(tmp_path / "model" / KEPT)[0]
    other = loaded_from(loaded.model, loaded.tokenizer, "other")
    with torch.no_grad():
        other.model.lm_head.weight += 1
    save_folder(other, tmp_path / "other")
    with pytest.raises(ModelError, match="is of another model"):
        apply_kept(tmp_path / "other", kept, tmp_path / "again")

    def damaged(more, **tensors):
        save_file(
            load_file(kept) | tensors,
            tmp_path / "damaged.safetensors",
            {"fedprune": json.dumps(header | more)},
        )
        return tmp_path / "damaged.safetensors"

    name = "model.layers.0.mlp.up_proj.weight.0"
    for more, tensors in (
        ({"version": "2"}, {}),
        ({"blocks": [0, 9]}, {}),
        ({"blocks": "all"}, {}),
        ({"config": []}, {}),
        ({}, {name: torch.ones(WIDTH)}),
        ({}, {"no-dimension": torch.ones(3, dtype=torch.bool)}),
        ({}, {name: torch.ones(WIDTH - 1, dtype=torch.bool)}),
        ({}, {"model.nothing.0": torch.ones(3, dtype=torch.bool)}),
    ):
        with pytest.raises(ModelError, match="damaged"):
            apply_kept(base, damaged(more, **tensors), tmp_path / "again")
    with pytest.raises(ModelError, match="must be some of 0 to 2 in ascending"):
        apply_kept(base, damaged({"blocks": [2, 0]}), tmp_path / "again")
    with pytest.raises(ModelError, match="cannot take this shape"):
        wide = {name: torch.ones(WIDTH, dtype=torch.bool)}
        apply_kept(base, damaged({}, **wide), tmp_path / "again")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(kept.read_bytes()[:-5])
    with pytest.raises(ModelError, match="damaged"):
        apply_kept(base, cut, tmp_path / "again")
    with pytest.raises(ModelError, match="There is no"):
        read_kept(tmp_path / "nothing")
    assert is_kept(kept) and not is_kept(cut) and not is_kept(base / "model.safetensors")
    assert not (tmp_path / "again").exists()
