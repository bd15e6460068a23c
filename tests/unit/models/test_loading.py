import json
import shutil
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedprune.errors import ModelError
from fedprune.models.export import export_model
from fedprune.models.loading import check_seq_len, load_model, model_shapes
from fedprune.models.sources import HeldWeights, MappedWeights
from tests.support.architectures import FAMILIES, MIXTURES, tiny_model
from tests.support.folders import load_folder, model_config, save_folder
from tests.support.masks import equal_bits, state_of


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return save_folder(tiny_model("llama", torch.bfloat16), tmp_path_factory.mktemp("stored"))


@pytest.fixture
def copy(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "copy")


def test_loads_as_stored_ready_to_run(stored):
    loaded = load_folder(stored)
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.layout.prefix == "model.layers"
    assert loaded.path == str(stored)
    assert all(parameter.is_meta for parameter in loaded.model.parameters())
    assert equal_bits(state_of(loaded), state_of(tiny_model("llama", torch.bfloat16)))


def test_loads_in_a_chosen_dtype(stored):
    loaded = load_folder(stored, "float32")
    assert loaded.model.dtype == torch.float32
    as_stored = state_of(load_folder(stored))
    expected = {name: tensor.float() for name, tensor in as_stored.items()}
    assert equal_bits(state_of(loaded), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_mapped_weights_are_those_that_the_library_loads(tmp_path, family, options):
    save_folder(tiny_model(family, torch.bfloat16), tmp_path, **options)
    loaded = load_folder(tmp_path)
    assert isinstance(loaded.source, MappedWeights)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert equal_bits(state_of(loaded), whole.state_dict())
    outer = loaded.outer_tensors()
    blocks = [loaded.block_tensors(index) for index in range(len(loaded.layout.blocks))]
    inside = {
        f"{loaded.layout.prefix}.{index}.{name}": tensor
        for index, tensors in enumerate(blocks)
        for name, tensor in tensors.items()
    }
    everything = dict(chain(whole.named_parameters(), whole.named_buffers()))
    assert equal_bits(outer | inside, {name: t.detach() for name, t in everything.items()})
    assert loaded.model.generation_config.to_dict() == whole.generation_config.to_dict()
    loaded.prefetch(0)
    loaded.prefetch(99)


def test_tied_weights_that_are_stored_apart_count_as_the_library_lets_them(tmp_path):
    made = tiny_model("gpt2")
    assert made.model.all_tied_weights_keys
    save_folder(made, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    state = load_file(file)
    embedding = state["transformer.wte.weight"]
    save_file({**state, "lm_head.weight": embedding.clone()}, file, {"format": "pt"})
    assert isinstance(load_folder(tmp_path).source, MappedWeights)
    save_file({**state, "lm_head.weight": embedding + 1}, file, {"format": "pt"})
    loaded = load_folder(tmp_path)
    assert torch.equal(loaded.outer_tensors()["lm_head.weight"], embedding + 1)
    export_model(loaded, {}, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert torch.equal(load_file(file)["lm_head.weight"], embedding + 1)


def test_a_pickled_checkpoint_is_held_in_memory(tmp_path, caplog):
    made = tiny_model("opt")
    save_folder(made, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(made.model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_folder(tmp_path)
    assert isinstance(loaded.source, HeldWeights)
    assert "held in memory whole" in caplog.text
    assert equal_bits(state_of(loaded), state_of(made))


def test_a_model_in_the_hubs_cache_is_mapped_from_there(tmp_path, monkeypatch):
    for name, value in (("HF_HUB_CACHE", str(tmp_path)), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    entry = tmp_path / "models--owner--name"
    made = tiny_model("gpt_neox")
    save_folder(made, entry / "snapshots" / ("0" * 40), max_shard_size="20KB")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("0" * 40)
    loaded = load_folder("owner/name")
    assert isinstance(loaded.source, MappedWeights)
    assert equal_bits(state_of(loaded), state_of(made))


def test_a_nodes_own_copy_takes_the_place_of_the_configured_path(stored):
    assert load_model(model_config("/configured/elsewhere/model"), str(stored)).path == str(stored)


def test_home_folders_may_be_written_with_a_tilde(stored, monkeypatch):
    monkeypatch.setenv("HOME", str(stored.parent))
    assert load_folder(f"~/{stored.name}").path == str(stored)


def test_the_demo_model_is_loaded_from_the_package():
    loaded = load_model(model_config("", name="demo"))
    assert model_shapes(model_config("", name="demo")) == loaded.layout.shapes()


def test_no_progress_bars_in_logs(stored, capsys):
    load_folder(stored)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_model_shapes_need_the_configuration_only(tmp_path, family):
    loaded = tiny_model(family)
    loaded.model.config.save_pretrained(tmp_path)
    assert model_shapes(model_config(tmp_path)) == loaded.layout.shapes()


def test_missing_folder(tmp_path):
    for load in (load_model, model_shapes):
        with pytest.raises(ModelError, match="`model.path`.*nowhere' is not a folder.*Hub id"):
            load(model_config(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", "no configuration: looked for config.json, found .*tokenizer.json"),
        ("tokenizer.json", "no tokenizer: looked for tokenizer.json or tokenizer.model"),
        ("model.safetensors", "no weights: looked for model.safetensors"),
    ],
)
def test_incomplete_folders(copy, gone, message):
    (copy / gone).unlink()
    with pytest.raises(ModelError, match=message):
        load_folder(copy)


def test_missing_shard(tmp_path):
    save_folder(tiny_model(), tmp_path, max_shard_size="50KB")
    victim = sorted(tmp_path.glob("model-*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(ModelError, match=f"misses 1 weight file.*{victim.name}"):
        load_folder(tmp_path)


def broken_index(file):
    file.unlink()
    file.with_name("model.safetensors.index.json").write_text('{"weight_map": 3}')


def truncated(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def another_shape(file):
    state = load_file(file) | {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 3)}
    save_file(state, file, metadata={"format": "pt"})


def lacking_a_weight(file):
    """Which must not be filled up with random numbers."""
    state = load_file(file)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(("family", "prefix"), [("llama", "model."), ("gpt2", "transformer.")])
def test_checkpoints_of_the_body_alone_are_mapped_too(tmp_path, family, prefix):
    made = tiny_model(family)
    save_folder(made, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    short = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    save_file(short, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_folder(tmp_path)
    assert isinstance(loaded.source, MappedWeights)
    assert equal_bits(state_of(loaded), state_of(made))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_index, "not an index"),
        (truncated, "cannot be loaded"),
        (another_shape, "cannot be loaded"),
        (lacking_a_weight, "lacks 1 weights.*layers.1.mlp.up_proj"),
    ],
)
def test_damaged_weights(copy, damage, message):
    damage(copy / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load_folder(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        ({"model_type": "unheard-of"}, "cannot be loaded"),
        (
            {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Config"}},
            "cannot be loaded",
        ),
    ],
)
def test_models_that_cannot_be_pruned(copy, changes, message):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (copy / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    for load in (load_model, model_shapes):
        with pytest.raises(ModelError, match=message):
            load(model_config(copy))


def test_damaged_configuration(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        model_shapes(model_config(copy))


def test_a_hub_id_without_a_connection():
    for load in (load_model, model_shapes):
        with pytest.raises(ModelError, match=r"'some-owner/some-model' cannot be loaded.*local"):
            load(model_config("some-owner/some-model"))


def test_sequences_longer_than_the_model():
    model = tiny_model("gpt2").model
    check_seq_len(model, 32, "pruner.seq_len")
    with pytest.raises(ModelError, match="`pruner.seq_len` is 33, but GPT2LMHeadModel has 32"):
        check_seq_len(model, 33, "pruner.seq_len")
    check_seq_len(tiny_model("bloom").model, 10_000, "pruner.seq_len")
