"""Quantised folders: transformers reads of them exactly the weights that were simulated."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from fedprune.errors import ModelError
from fedprune.evaluation.sizes import model_sizes
from fedprune.models.export import SIDECAR, export_model
from fedprune.models.loading import load_model
from fedprune.models.quantized import check_quantizable, packed
from fedprune.pruning.grid import Grid
from fedprune.pruning.rounding import round_weight
from fedprune.wire.masks import BitMask
from tests.support.architectures import made_of, tiny_config, tiny_model
from tests.support.folders import load_folder, model_config
from tests.support.fresh import TOKENS, in_a_fresh_process
from tests.support.smaller import simulated

pytest.importorskip("compressed_tensors")


def quantize(loaded, grid, density=1.0):
    """Return every linear rounded, some of its weights pruned as well."""
    draw = torch.Generator().manual_seed(0)
    changes = {}
    for block, shapes in enumerate(loaded.layout.shapes()):
        changes[block] = {}
        for name, shape in shapes.items():
            keep = torch.rand(shape, generator=draw) < density
            mask = BitMask.from_bool(keep.numpy()) if density < 1 else None
            weight = loaded.weight(block, name)
            changes[block][name] = round_weight(weight, torch.ones(shape[1]), grid, 0.01, mask)
    return changes


def opened(folder):
    return load_model(model_config(folder), quantized=True)


def said(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


WIDE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
FAMILIES = [
    ("llama", Grid(4, None, True), torch.bfloat16, 1.0),
    ("qwen3", Grid(4, None, False), torch.bfloat16, 0.5),
    ("gemma3", Grid(8, None, True), torch.float32, 0.5),
    ("opt", Grid(8, None, False), torch.float16, 1.0),
    ("mixtral", Grid(4, None, True), torch.bfloat16, 0.5),
    ("llama of groups", Grid(4, 32, False), torch.bfloat16, 0.5),
]


def model_of(family, dtype):
    if family == "llama of groups":
        return made_of(hf.LlamaConfig(**WIDE, dtype=dtype))
    return tiny_model(family, dtype)


def test_folders_load_as_they_were_simulated_where_nobody_knows_fedprune(tmp_path):
    expected = {}
    for family, grid, dtype, density in FAMILIES:
        loaded = model_of(family, dtype)
        changes = quantize(loaded, grid, density)
        export_model(loaded, changes, tmp_path / family)
        expected[family] = simulated(loaded, changes, TOKENS), str(dtype)
        # The folder without masks beside, and a second reader: `fedprune evaluate`.
        assert not (tmp_path / family / SIDECAR).exists()
        again = opened(tmp_path / family)
        with torch.no_grad():
            logits = again.model(input_ids=TOKENS).logits
        torch.testing.assert_close(logits, expected[family][0], rtol=0, atol=0)
    found = in_a_fresh_process([tmp_path / family for family, *_ in FAMILIES], tmp_path)
    for family, (logits, dtype) in expected.items():
        there = found[str(tmp_path / family)]
        assert there[1] == dtype
        torch.testing.assert_close(there[0], logits, rtol=0, atol=0)


def test_the_configuration_is_llm_compressors(tmp_path):
    from compressed_tensors.quantization import QuantizationConfig

    loaded = made_of(hf.LlamaConfig(**WIDE))
    export_model(loaded, quantize(loaded, Grid(4, 32, True)), tmp_path / "model")
    found = said(tmp_path / "model")
    assert found["ignore"] == ["lm_head"] and "dequantize" not in found
    known = QuantizationConfig.model_validate(
        {
            k: v
            for k, v in found.items()
            if k not in ("sparsity_config", "transform_config", "version")
        }
    )
    (scheme,) = known.config_groups.values()
    assert (scheme.weights.num_bits, scheme.weights.group_size) == (4, 32)
    assert scheme.weights.strategy == "group" and scheme.targets == ["Linear"]
    stored = load_file(tmp_path / "model" / "model.safetensors")
    down = "model.layers.1.mlp.down_proj.weight"
    assert stored[f"{down}_shape"].tolist() == [64, 128] and down not in stored
    assert stored[f"{down}_packed"].shape == (64, 16) and stored[f"{down}_scale"].shape == (64, 4)
    assert "model.embed_tokens.weight" in stored and "lm_head.weight" in stored
    rows = made_of(hf.LlamaConfig(**WIDE))
    export_model(rows, quantize(rows, Grid(8, None, True)), tmp_path / "rows")
    weights = said(tmp_path / "rows")["config_groups"]["group_0"]["weights"]
    assert weights["strategy"] == "channel" and weights["group_size"] is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [64, 7])
def test_packing_is_compressed_tensors_own(bits, columns):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    half = 1 << bits - 1
    codes = torch.randint(-half, half, (5, columns)).to(torch.int8)
    assert torch.equal(packed(codes, bits), pack_to_int32(codes, bits))
    assert torch.equal(packed(codes.T, bits).T, pack_to_int32(codes, bits, packed_dim=0))


def test_what_stays_dense_is_ignored(tmp_path):
    loaded = tiny_model("llama", torch.bfloat16)
    changes = quantize(loaded, Grid(4, None, True))
    del changes[1], changes[0]["mlp.up_proj"]
    export_model(loaded, changes, tmp_path / "model")
    ignored = said(tmp_path / "model")["ignore"]
    assert "model.layers.0.mlp.up_proj" in ignored and "model.layers.1.mlp.up_proj" in ignored
    assert "model.layers.0.mlp.down_proj" not in ignored
    assert opened(tmp_path / "model").weight(1, "mlp.up_proj").dtype == torch.bfloat16


def test_bytes_of_matrices_at_four_bits(tmp_path):
    sizes = WIDE | {"hidden_size": 256, "intermediate_size": 512}
    loaded = made_of(hf.LlamaConfig(**sizes, dtype=torch.bfloat16))
    loaded.model.to(torch.bfloat16)
    export_model(loaded, {}, tmp_path / "dense")
    export_model(loaded, quantize(loaded, Grid(4, 128, True)), tmp_path / "model")
    tables = 2 * 2 * 100 * 256  # embedding and head
    dense, small = (model_sizes(tmp_path / name).dense - tables for name in ("dense", "model"))
    assert small < 0.30 * dense


def test_a_quantised_folder_is_measured_and_not_pruned(tmp_path):
    loaded = tiny_model("llama", torch.bfloat16)
    export_model(loaded, quantize(loaded, Grid(4, None, True)), tmp_path / "model")
    with pytest.raises(ModelError, match="is quantised.*`fedprune evaluate` measures this one"):
        load_folder(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"compressed-tensors"', '"awq"'))
    with pytest.raises(ModelError, match="quantised by 'awq'"):
        opened(tmp_path / "model")


def test_without_the_package_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    loaded = tiny_model("llama", torch.bfloat16)
    export_model(loaded, quantize(loaded, Grid(4, None, True)), tmp_path / "model")
    monkeypatch.setattr(
        "fedprune.models.architecture.is_compressed_tensors_available", lambda: False
    )
    with pytest.raises(ModelError, match=r"pip install 'fedprune\[quantized\]'"):
        opened(tmp_path / "model")


def test_models_without_such_a_form_are_refused_before_any_work(tmp_path):
    gpt2, mixtral = tiny_model("gpt2"), tiny_model("mixtral")
    with pytest.raises(ModelError, match=r"h\.0\.attn\.c_attn.*Conv1D.*nn.Linear only"):
        check_quantizable(gpt2.layout, None, True)
    with pytest.raises(ModelError, match="Conv1D"):
        export_model(gpt2, quantize(gpt2, Grid(4, None, True)), tmp_path / "gpt2")
    with pytest.raises(ModelError, match="experts.*Set pruner.symmetric=true"):
        check_quantizable(mixtral.layout, None, False)
    with pytest.raises(ModelError, match="`pruner.group_size` 64 does not divide its 32 inputs"):
        check_quantizable(tiny_model("llama").layout, 64, True)
    changes = quantize(mixtral, Grid(4, None, True))
    experts = [name for name in changes[0] if "experts" in name]
    del changes[0][experts[0]]
    with pytest.raises(ModelError, match="the other experts are not"):
        export_model(mixtral, changes, tmp_path / "mixtral")
    assert not list(tmp_path.iterdir())
    check_quantizable(made_of(tiny_config("qwen3")).layout, None, False)


def test_one_scheme_for_all(tmp_path):
    loaded = tiny_model("llama", torch.bfloat16)
    changes = quantize(loaded, Grid(4, None, True))
    changes[1] = quantize(loaded, Grid(8, None, True))[1]
    with pytest.raises(ModelError, match="same bits and symmetry"):
        export_model(loaded, changes, tmp_path / "model")


def test_experts_whose_rows_are_stacked_are_refused():
    with pytest.raises(ModelError, match=r"mlp\.0\.w1` cannot be quantised: .*one under another"):
        check_quantizable(tiny_model("dbrx").layout, 8, symmetric=True)
