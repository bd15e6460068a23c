import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fedprune.errors import ModelError
from fedprune.models.fingerprint import fingerprint
from fedprune.models.loading import loaded_from
from fedprune.models.reshape import ORIGIN, Reshape, check_reshape, export_reshaped, read_origin
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask
from tests.support.architectures import (
    FAMILIES,
    made_of,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
    token_samples,
)
from tests.support.folders import load_folder
from tests.support.smaller import logits_without


def deep(family, blocks=5, **more):
    config = tiny_config(family).to_dict()
    kind = type(tiny_config(family))
    config.pop("layer_types", None)
    config |= {kind.attribute_map.get("num_hidden_layers", "num_hidden_layers"): blocks, **more}
    return made_of(kind.from_dict(config))


def load(folder, **more):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_fewer_blocks_says_what_the_dense_one_says_without_them(tmp_path, family):
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    more = {"layer_types": [*types, "sliding_attention", "full_attention"]}
    loaded = deep(family, **(more if family in ("gemma2", "gemma3") else {}))
    export_reshaped(loaded, {}, Reshape(blocks=(0, 2, 4)), tmp_path / "model")
    again = load(tmp_path / "model")
    (sample,) = token_samples(1, 16)
    expected = logits_without(loaded, (1, 3), sample[None])
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=sample[None]).logits, expected)
        cached = again(input_ids=sample[None, :9], use_cache=True)
        rest = again(input_ids=sample[None, 9:], past_key_values=cached.past_key_values).logits
    torch.testing.assert_close(rest, expected[:, 9:], rtol=1e-4, atol=1e-4)


def test_lists_of_a_configuration_are_cut_with_the_blocks(tmp_path):
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    config = hf.Qwen2Config(
        **tiny_config("qwen2").to_dict()
        | {"num_hidden_layers": 4, "layer_types": kinds, "max_window_layers": 2}
        | {"use_sliding_window": True, "sliding_window": 4}
    )
    export_reshaped(made_of(config), {}, Reshape(blocks=(1, 2, 3)), tmp_path / "model")
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    assert found["num_hidden_layers"] == 3
    assert found["layer_types"] == kinds[1:]
    assert found["max_window_layers"] == 1


def test_numbers_of_blocks_in_a_configuration_are_those_of_the_new_ones():
    config = tiny_config("qwen3")
    loaded = made_of(
        config.from_dict(config.to_dict() | {"num_hidden_layers": 4, "layer_types": None})
    )
    loaded.model.config.mlp_only_layers = [0, 2, 3]
    loaded.model.config.num_kv_shared_layers = 2
    loaded.model.config.no_rope_layers = [1, 1, 0, 1]
    new = check_reshape(loaded, Reshape(blocks=(0, 2))).config
    assert (new.mlp_only_layers, new.num_kv_shared_layers, new.no_rope_layers) == (
        [0, 1],
        1,
        [1, 0],
    )


def test_a_configuration_in_a_configuration_is_cut(tmp_path):
    text = tiny_config("gemma3").to_dict() | {"num_hidden_layers": 4}
    text["layer_types"] = ["sliding_attention", "full_attention"] * 2
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = hf.Gemma3ForConditionalGeneration(config)
    loaded = loaded_from(model, tiny_tokenizer(), "made")
    new = check_reshape(loaded, Reshape(blocks=(0, 3))).config
    assert new.text_config.num_hidden_layers == 2
    assert new.text_config.layer_types == ["sliding_attention", "full_attention"]
    assert new.vision_config.num_hidden_layers == 1


def test_windows_that_follow_from_the_number_of_a_block_are_refused_by_name():
    loaded = deep("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(
        ModelError, match="block 2, as number 1, would have `scaling` .* where it was"
    ):
        check_reshape(loaded, Reshape(blocks=(0, 2, 3, 4)))
    check_reshape(loaded, Reshape(blocks=(0, 1, 2)))  # nothing moves


@pytest.mark.parametrize("blocks", [(), (1, 0), (0, 0), (0, 9), (-1, 0)])
def test_blocks_that_are_none_are_refused(blocks):
    with pytest.raises(ModelError, match="must be some of 0 to 2 in ascending order"):
        check_reshape(tiny_model(), Reshape(blocks=blocks))


def narrow(width):
    """Keep the first neurons of every Llama feed-forward layer."""

    def cut(name, tensor):
        if "gate_proj" in name or "up_proj" in name:
            return tensor[:width]
        return tensor[:, :width] if "down_proj" in name else tensor

    return Reshape(config={"intermediate_size": width}, tensors=cut)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_matrices_and_changes_before_they_are_cut(tmp_path, dtype):
    loaded = tiny_model("llama", dtype)
    name = "mlp.down_proj"
    weight = loaded.weight(1, name)
    keep = BitMask.from_bool((torch.arange(48) < 16).expand(weight.shape).numpy())
    changes = {1: {name: SparseWeight.from_dense(2 * weight, keep)}}
    export_reshaped(loaded, changes, narrow(16), tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(stored["model.layers.1.mlp.down_proj.weight"], 2 * weight[:, :16])
    again = load(tmp_path / "model")
    assert again.config.intermediate_size == 16
    assert again.dtype == dtype


def test_matrices_of_other_sizes_than_the_configuration_says_are_refused(tmp_path):
    wrong = Reshape(config={"intermediate_size": 16}, tensors=narrow(24).tensors)
    with pytest.raises(ModelError, match="cannot take this shape: `.*gate_proj.weight` has shape"):
        export_reshaped(tiny_model(), {}, wrong, tmp_path / "model")
    with pytest.raises(ModelError, match="which nothing made"):
        gone = Reshape(tensors=lambda name, one: None if "gate" in name else one)
        export_reshaped(tiny_model(), {}, gone, tmp_path / "model")
    with pytest.raises(ModelError, match="has no `intermediate_size`"):
        check_reshape(tiny_model("gpt2"), Reshape(config={"intermediate_size": 16}))
    assert not list(tmp_path.iterdir())


def test_an_export_says_where_it_came_from(tmp_path):
    loaded = tiny_model()
    export_reshaped(loaded, {}, Reshape(blocks=(0, 2)), tmp_path / "model")
    found, mark = read_origin(tmp_path / "model"), fingerprint(loaded)
    assert found["blocks"] == [0, 2]
    assert found["model"]["weights"] == mark.weights
    again = load(tmp_path / "model")
    assert found["parameters"]["after"] == sum(one.numel() for one in again.parameters())
    assert found["parameters"]["before"] == sum(p.numel() for p in loaded.model.parameters())
    (tmp_path / "model" / ORIGIN).write_text('{"format": 1}')
    with pytest.raises(ModelError, match="is damaged"):
        read_origin(tmp_path / "model")
    assert read_origin(tmp_path) is None


def test_shards_and_the_names_that_a_checkpoint_has(tmp_path, monkeypatch):
    """A mapped checkpoint keeps its own names; its blocks get their new numbers in them."""
    loaded = deep("gpt2")
    loaded.model.transformer.save_pretrained(tmp_path / "body")  # names without "transformer."
    loaded.tokenizer.save_pretrained(tmp_path / "body")
    mapped = load_folder(tmp_path / "body")
    monkeypatch.setattr("fedprune.models.reshape.SHARD_BYTES", 50_000)
    export_reshaped(mapped, {}, Reshape(blocks=(0, 3, 4)), tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert {name.split(".")[1] for name in index["weight_map"] if name[:2] == "h."} == set("012")
    (sample,) = token_samples(1, 8)
    again = load(tmp_path / "model")
    with torch.no_grad():
        found = again(input_ids=sample[None]).logits
    torch.testing.assert_close(found, logits_without(loaded, (1, 2), sample[None]))
