import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedprune.errors import ModelError
from fedprune.models.export import SIDECAR, apply_masks, export_model
from fedprune.models.sidecar import read_sidecar
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask
from tests.support.architectures import tiny_model, token_samples
from tests.support.folders import load_folder, save_folder
from tests.support.masks import equal_bits, expected_state, random_masks, state_of, write_sidecar


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_export_loads_with_real_zeros_and_its_masks(tmp_path, family, dtype):
    loaded = tiny_model(family, dtype)
    masks = random_masks(loaded)
    expected = expected_state(loaded, masks)
    export_model(loaded, masks, tmp_path / "model")
    again = load_folder(tmp_path / "model")
    assert equal_bits(state_of(again), expected)
    assert read_sidecar(tmp_path / "model" / SIDECAR) == masks
    assert again.tokenizer("w3 w99")["input_ids"] == [3, 99]
    (sample,) = token_samples(1, 8)
    with torch.no_grad():
        pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
        loaded.model.load_state_dict(expected)
        logits = [model(input_ids=sample[None]).logits for model in (loaded.model, pruned)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_new_values_are_exported_and_the_sidecar_has_their_masks(tmp_path, family):
    loaded = tiny_model(family, torch.bfloat16)
    masks = random_masks(loaded)
    changes = {
        block: {
            name: SparseWeight.from_dense(torch.full(mask.shape, 1.0 + 2**-9), mask)
            for name, mask in named.items()
        }
        for block, named in masks.items()
    }
    export_model(loaded, changes, tmp_path / "model")
    again = load_folder(tmp_path / "model")
    for block, named in masks.items():
        for name, mask in named.items():
            weight = again.weight(block, name)
            assert torch.equal(weight, torch.from_numpy(mask.to_bool()).to(torch.bfloat16))
    assert read_sidecar(tmp_path / "model" / SIDECAR) == masks


def test_no_progress_bars_in_logs(tmp_path, capsys):
    export_model(tiny_model(), {}, tmp_path / "model")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_weights_lie_alone_where_servers_look_for_them(tmp_path):
    loaded = tiny_model()
    export_model(loaded, random_masks(loaded), tmp_path / "model")
    found = [path.name for path in (tmp_path / "model").glob("*.safetensors")]
    assert found == ["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_large_models_are_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr("fedprune.models.export.SHARD_BYTES", 50_000)
    loaded = tiny_model()
    masks = random_masks(loaded)
    expected = expected_state(loaded, masks)
    export_model(loaded, masks, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors.index.json").is_file()
    assert equal_bits(state_of(load_folder(tmp_path / "model")), expected)


@pytest.mark.parametrize("failing", ["config", "tokenizer"])
def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch, failing):
    loaded = tiny_model()

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    part = loaded.tokenizer if failing == "tokenizer" else loaded.model.config
    monkeypatch.setattr(part, "save_pretrained", fail)
    with pytest.raises(ModelError, match="No space left.*output_dir"):
        export_model(loaded, random_masks(loaded), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_overwrite_and_leaves_the_model_dense(tmp_path):
    loaded = tiny_model()
    before = state_of(loaded)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("model", "file"):
        with pytest.raises(ModelError, match="not an empty folder"):
            export_model(loaded, random_masks(loaded), tmp_path / name)
    assert (tmp_path / "model" / "mine.txt").read_text() == "keep"
    assert equal_bits(state_of(loaded), before)


def test_an_empty_folder_and_the_rest_of_a_killed_export_are_no_hindrance(tmp_path):
    loaded = tiny_model()
    (tmp_path / "model").mkdir()
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model-00001-of-00009.safetensors").write_text("half")
    export_model(loaded, random_masks(loaded), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not list((tmp_path / "model").glob("*-of-*"))


def test_sampling_options_of_old_checkpoints_do_not_stop_an_export(tmp_path):
    loaded = tiny_model()
    loaded.model.generation_config.temperature = 0.6
    with pytest.raises(ValueError, match="do_sample"):
        loaded.model.generation_config.validate(strict=True)
    export_model(loaded, random_masks(loaded), tmp_path / "model")
    assert load_folder(tmp_path / "model").model.generation_config.temperature == 0.6


def test_who_reads_the_configuration_can_read_the_weights(tmp_path):
    loaded = tiny_model()
    export_model(loaded, random_masks(loaded), tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert len(modes) == 1


def saved_base(tmp_path, dtype=torch.float32):
    """Return a dense model's folder, and what is loaded of it."""
    base = save_folder(tiny_model("llama", dtype), tmp_path / "base")
    return base, load_folder(base)


def test_the_masks_make_the_model_again_bit_for_bit(tmp_path):
    base, loaded = saved_base(tmp_path, torch.bfloat16)
    export_model(loaded, random_masks(loaded), tmp_path / "model")
    apply_masks(base, tmp_path / "model" / SIDECAR, tmp_path / "again")
    names = [path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*")]
    assert len(names) > 4
    for name in names:
        one, two = tmp_path / "model" / name, tmp_path / "again" / name
        assert one.is_dir() or one.read_bytes() == two.read_bytes()


def test_masks_of_another_model_are_refused(tmp_path):
    base, loaded = saved_base(tmp_path)
    export_model(loaded, random_masks(loaded), tmp_path / "model")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="is of another model.*SHA-256.*that was pruned"):
        apply_masks(base, tmp_path / "model" / SIDECAR, tmp_path / "again")
    write_sidecar(
        tmp_path / "m",
        {0: {"mlp.up_proj": BitMask.from_bool(np.ones((1, 1), bool))}},
        "model.layers",
    )
    with pytest.raises(ModelError, match="Use masks made for this model"):
        apply_masks(base, tmp_path / "m", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_masks_do_not_stand_for_new_values(tmp_path):
    base, loaded = saved_base(tmp_path)
    changes = {
        0: {
            name: SparseWeight.from_dense(torch.ones(mask.shape), mask)
            for name, mask in random_masks(loaded)[0].items()
        }
    }
    export_model(loaded, changes, tmp_path / "model")
    with pytest.raises(ModelError, match="survivors have new values"):
        apply_masks(base, tmp_path / "model" / SIDECAR, tmp_path / "again")
