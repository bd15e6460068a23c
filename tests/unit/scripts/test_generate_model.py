"""Generated models: true shapes, one value a name and seed, loadable, whole or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedprune.errors import ModelError
from fedprune.models.embedded import demo_model_path
from scripts.generate_model import PRESETS, Draft, draft_model, generate_model, main

_SIZES = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_CONFIGS = {
    "llama": hf.LlamaConfig(**_SIZES, num_key_value_heads=2, initializer_range=0.05),
    "tied": hf.LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "opt": hf.OPTConfig(**_SIZES, ffn_dim=96, word_embed_proj_dim=64, pad_token_id=1),
    "gpt2": hf.GPT2Config(vocab_size=1024, n_embd=64, n_layer=3, n_head=4),
    "gemma2": hf.Gemma2Config(**_SIZES, num_key_value_heads=2, head_dim=16),
}


@pytest.fixture(params=_CONFIGS)
def shape(request, tmp_path):
    return written(request.param, tmp_path)


def written(name: str, folder: Path) -> str:
    """Write one of the configurations and return its folder."""
    _CONFIGS[name].save_pretrained(folder / name)
    return str(folder / name)


def draft(shape: str, blocks: int | None = None, seed: int = 0, dtype: str = "float32") -> Draft:
    return draft_model(shape, dtype, blocks, seed)


def test_it_loads_and_predicts(shape, tmp_path):
    generate_model(draft(shape, dtype="bfloat16"), tmp_path / "model")
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == torch.bfloat16 and model.config.num_hidden_layers == 3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokens = tokenizer("the quick brown fox", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(tokens).logits).all()


def test_equal_seeds_equal_tensors(shape):
    first, again, other = draft(shape), draft(shape), draft(shape, seed=1)
    for name, stored in first.stored.items():
        drawn = first.draw(name)
        assert (drawn.shape, drawn.dtype) == (stored.shape, torch.float32)
        assert torch.equal(drawn, again.draw(name))
        assert stored.ndim < 2 or not torch.equal(drawn, other.draw(name))


def test_a_slice_has_the_same_first_blocks(shape):
    whole, part = draft(shape), draft(shape, blocks=2)
    left_out = set(whole.stored) - set(part.stored)
    assert left_out and all(name.startswith(f"{whole.prefix}.2.") for name in left_out)
    assert all(torch.equal(part.draw(name), whole.draw(name)) for name in part.stored)


def test_shards_hold_each_tensor_once(tmp_path):
    made = draft(written("tied", tmp_path))
    generate_model(made, tmp_path / "model", shard_bytes=100_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == made.bytes
    assert len(set(index["weight_map"].values())) > 2
    assert "lm_head.weight" not in index["weight_map"]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "model" / file)[name], made.draw(name))
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_values_are_like_a_trained_model_s(tmp_path):
    made = draft(written("llama", tmp_path))
    assert (made.draw("model.layers.0.input_layernorm.weight") == 1).all()
    head = made.draw("lm_head.weight")
    assert head.std() == pytest.approx(0.05, rel=0.02)
    down = made.draw("model.layers.0.mlp.down_proj.weight")
    deviations = down.std(dim=1) / 0.05
    assert 0.7 < float(deviations.median()) < 1.4
    assert float(deviations.max()) > 3.5  # a loud feature
    embedded = made.draw("model.embed_tokens.weight").std(dim=0)
    assert int(embedded.argmax()) == int(deviations.argmax())  # is loud wherever it is written


def test_a_matrix_is_drawn_in_pieces_that_differ(tmp_path, monkeypatch):
    made = draft(written("llama", tmp_path))
    monkeypatch.setattr("scripts.generate_model._CHUNK", 64 * 10)
    rows = made.draw("lm_head.weight")
    assert len(torch.unique(rows[:, 0])) > 1000


def test_presets_have_the_published_sizes():
    billions = {name: draft(name, dtype="bfloat16").weights / 1e9 for name in PRESETS}
    assert billions == pytest.approx(
        {
            "llama-7b": 6.738,
            "llama-13b": 13.016,
            "llama-30b": 32.529,
            "open-llama-3b": 3.426,
            "llama-2-7b": 6.738,
            "llama-2-13b": 13.016,
            "llama-2-70b": 68.977,
            "llama-3-8b": 8.030,
            "llama-3-70b": 70.554,
            "opt-125m": 0.125,
            "opt-1.3b": 1.316,
            "qwen3-30b-a3b": 30.532,
        },
        abs=0.0006,
    )


def test_an_unknown_shape_is_refused():
    with pytest.raises(ModelError, match=r"'llama-9b'") as error:
        draft("llama-9b")
    assert "llama-2-7b" in str(error.value) and "config.json" in str(error.value)


@pytest.mark.parametrize("blocks", [0, 4])
def test_more_blocks_than_there_are(blocks, tmp_path):
    with pytest.raises(ModelError, match=f"1 to 3 .* got {blocks}"):
        draft(written("llama", tmp_path), blocks)


def test_an_encoder_decoder_is_refused(tmp_path):
    hf.T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="causal language model"):
        draft(str(tmp_path))


def test_a_small_vocabulary_is_refused(tmp_path):
    hf.LlamaConfig(**_SIZES | {"vocab_size": 1023}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"1023 tokens.*1024.*`vocab_size`"):
        draft(str(tmp_path))


def test_an_existing_folder_stays(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").touch()
    with pytest.raises(ModelError, match="not an empty folder"):
        generate_model(draft(written("llama", tmp_path)), tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["precious"]


def test_a_full_disk_is_noticed_first(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"takes .* GB, .* GB free.*`--blocks`"):
        generate_model(draft(written("llama", tmp_path)), tmp_path / "new" / "model")
    assert not (tmp_path / "new").exists()


def test_a_slice_of_a_folder_s_shape(tmp_path, capsys):
    folder, shape = tmp_path / "model", str(demo_model_path())
    assert main([shape, str(folder), "--blocks", "2", "--dtype", "float16"]) == 0
    shown = capsys.readouterr().out
    assert "2 block(s)" in shown and "GB as float16" in shown and str(folder) in shown
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["dtype"]) == (2, "float16")
    assert main([shape, str(folder)]) == 1
    assert "not an empty folder" in capsys.readouterr().err
