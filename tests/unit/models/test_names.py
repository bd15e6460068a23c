"""What files call tensors and what the state does; the library's loader and writer are oracles."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from fedprune.errors import ModelError
from fedprune.evaluation.sizes import model_sizes
from fedprune.models.architecture import auto_class
from fedprune.models.export import SIDECAR, apply_masks, export_model
from fedprune.models.loading import loaded_from
from fedprune.models.sources import MappedWeights
from tests.support.architectures import MIXTURES, tiny_model, tiny_tokenizer
from tests.support.folders import load_folder, save_folder
from tests.support.image_text import IMAGE_TEXT, image_text_model, saved_image_text
from tests.support.masks import equal_bits, expected_state, random_masks, state_of

# Others are stored as the state calls them.
_RENAMED = ("gemma3", "llava", "mistral3", "fuyu", "got_ocr2")
_MERGED = ("mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "jetmoe")


def stored(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def reloaded(folder):
    auto = auto_class(hf.AutoConfig.from_pretrained(folder))
    model, report = auto.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model


def save_tiny(family, folder, dtype=torch.float32):
    return save_folder(tiny_model(family, dtype), folder)


def check(folder, out):
    """Check loading, an export with masks, its sizes, and that the masks make it again."""
    loaded = load_folder(folder)
    assert isinstance(loaded.source, MappedWeights)
    assert equal_bits(state_of(loaded), dict(reloaded(folder).state_dict()))
    masks = random_masks(loaded, 0.5)
    export_model(loaded, masks, out / "pruned")
    before, after = stored(folder), stored(out / "pruned")
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    assert equal_bits(dict(reloaded(out / "pruned").state_dict()), expected_state(loaded, masks))
    apply_masks(folder, out / "pruned" / SIDECAR, out / "again")
    assert equal_bits(stored(out / "again"), after)
    pruned = sum(int((~mask.to_bool()).sum()) for part in masks.values() for mask in part.values())
    bits = sum(mask.bits.nbytes for part in masks.values() for mask in part.values())
    whole = sum(tensor.nbytes for tensor in after.values())
    size = next(iter(after.values())).dtype.itemsize
    assert model_sizes(out / "pruned").bits_and_values == whole - pruned * size + bits
    return before


@pytest.mark.parametrize("family", IMAGE_TEXT)
def test_models_of_images_and_text_keep_the_names_of_their_files(tmp_path, family):
    names = check(saved_image_text(family, tmp_path / "model", torch.bfloat16), tmp_path)
    differ = set(names) != set(image_text_model(family).state_dict())
    assert differ or family not in _RENAMED


def test_the_text_of_a_checkpoint_of_images_may_be_loaded_alone(tmp_path):
    """Qwen 3.5 says by its ``architectures`` which; the causal class drops what sees."""
    folder = saved_image_text("qwen3_5", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen3_5ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_folder(folder)
    assert type(loaded.model) is hf.Qwen3_5ForCausalLM
    export_model(loaded, {}, tmp_path / "out")
    assert equal_bits(dict(reloaded(tmp_path / "out").state_dict()), state_of(loaded))
    whole = stored(folder)
    found = stored(tmp_path / "out")
    assert equal_bits(found, {name: whole[name] for name in found})


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_are_stored_one_by_one_are_stored_so_again(tmp_path, family):
    names = check(save_tiny(family, tmp_path / "model"), tmp_path)
    assert any(".experts.0." in name or ".1.w1" in name for name in names) == (
        family in _MERGED[:4]
    )


@pytest.mark.parametrize(
    ("family", "body"),
    [
        ("gpt2", "transformer."),
        ("bloom", "transformer."),
        ("llama", "model."),
        ("mixtral", "model."),
    ],
)
def test_a_checkpoint_without_the_bodys_name_keeps_its_names(tmp_path, family, body):
    folder = save_tiny(family, tmp_path / "model")
    file = folder / "model.safetensors"
    short = {name.removeprefix(body): tensor for name, tensor in load_file(file).items()}
    save_file(short, file, {"format": "pt"})
    assert not any(name.startswith(body) for name in check(folder, tmp_path))


def test_unchanged_weights_are_exported_bit_for_bit(tmp_path):
    for family in ("mixtral", "deepseek_v3"):
        folder = save_tiny(family, tmp_path / family, torch.bfloat16)
        export_model(load_folder(folder), {}, tmp_path / f"{family}-out")
        assert equal_bits(stored(tmp_path / f"{family}-out"), stored(folder))


def test_a_model_made_in_python_is_exported_as_the_library_would_save_it(tmp_path):
    for name, model in (("gemma3", image_text_model("gemma3")), ("moe", tiny_model("olmoe").model)):
        model.save_pretrained(tmp_path / name)
        export_model(loaded_from(model, tiny_tokenizer()), {}, tmp_path / f"{name}-out")
        assert equal_bits(stored(tmp_path / f"{name}-out"), stored(tmp_path / name))


def test_what_the_library_keeps_in_float32_is_mapped_and_computed_so(tmp_path):
    folder = save_tiny("deepseek_v3", tmp_path / "model", torch.bfloat16)
    loaded = load_folder(folder)
    assert isinstance(loaded.source, MappedWeights)
    kept = {n for n, tensor in state_of(loaded).items() if tensor.dtype == torch.float32}
    assert kept == {n for n in loaded.names() if n.endswith("e_score_correction_bias")} != set()
    assert equal_bits(state_of(loaded), dict(reloaded(folder).state_dict()))


def test_a_name_that_no_file_has_is_stored_as_it_is(tmp_path):
    loaded = load_folder(saved_image_text("gemma3", tmp_path))
    tensor = torch.ones(1)
    assert loaded.source.stored({"model.language_model.layers.7.new": tensor}) == {
        "model.language_model.layers.7.new": tensor
    }


def test_merged_experts_that_come_without_their_others_go_under_the_states_name(tmp_path):
    """Gate and up are stored apart and merged; half of what is stored cannot be undone."""
    loaded = load_folder(save_tiny("mixtral", tmp_path))
    name = "model.layers.0.mlp.experts.gate_up_proj"
    (group,) = loaded.source.together([name])
    assert group == [name]
    found = loaded.source.stored({name: loaded.tensor(name)})
    assert len(found) == 8
    assert equal_bits(found, {key: stored(tmp_path)[key] for key in found})


def test_fewer_experts_are_stored_under_the_first_names(tmp_path):
    loaded = load_folder(save_tiny("mixtral", tmp_path))
    name = "model.layers.0.mlp.experts.down_proj"
    found = loaded.source.stored({name: loaded.tensor(name)[1:3]})
    place = "model.layers.0.block_sparse_moe.experts.{}.w2.weight"
    was = stored(tmp_path)
    assert equal_bits(
        found, {place.format(0): was[place.format(1)], place.format(1): was[place.format(2)]}
    )


def test_a_missing_expert_is_missed(tmp_path):
    folder = save_tiny("mixtral", tmp_path)
    file = folder / "model.safetensors"
    state = load_file(file)
    del state["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"`model\.layers\.0\.mlp.*7 tensors.*complete checkpoint"):
        load_folder(folder)
