"""Quantised folders: transformers reads of them exactly the weights that were simulated."""

import json
import os
import subprocess
import sys

import pytest
import torch

from fedprune.models.changes import changed_tensors
from fedprune.models.export import export_model
from fedprune.pruning.grid import Grid
from fedprune.pruning.rounding import round_weight
from fedprune.wire.masks import BitMask
from tests.support.architectures import tiny_model

pytest.importorskip("compressed_tensors")

LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
with torch.no_grad():
    logits = model(input_ids=torch.arange(3, 19)[None]).logits
assert "fedprune" not in sys.modules
torch.save((logits, str(model.dtype)), sys.argv[2])
"""


def in_a_fresh_process(folder, tmp_path):
    """Return the logits of a folder in a process that knows nothing of this package."""
    out = tmp_path / "logits.pt"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", LOAD, str(folder), str(out)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(out)


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


def simulated(loaded, changes):
    """Return the logits of the dequantised weights, put into the dense model itself."""
    layout, state = loaded.layout, {}
    for block, done in changes.items():
        tensors = changed_tensors(layout, block, loaded.block_tensors(block), done)
        state |= {f"{layout.prefix}.{block}.{name}": tensor for name, tensor in tensors.items()}
    loaded.model.load_state_dict(state, strict=False)
    with torch.no_grad():
        return loaded.model(input_ids=torch.arange(3, 19)[None]).logits


@pytest.mark.parametrize(
    ("family", "grid", "dtype", "density"),
    [
        ("llama", Grid(4, None, True), torch.bfloat16, 1.0),
        ("qwen3", Grid(4, None, False), torch.bfloat16, 0.5),
        ("gemma3", Grid(8, None, True), torch.float32, 0.5),
        ("opt", Grid(8, None, False), torch.float16, 1.0),
        ("mixtral", Grid(4, None, True), torch.bfloat16, 0.5),
    ],
)
def test_a_folder_loads_as_it_was_simulated(tmp_path, family, grid, dtype, density):
    loaded = tiny_model(family, dtype)
    changes = quantize(loaded, grid, density)
    export_model(loaded, changes, tmp_path / "model")
    expected = simulated(loaded, changes)
    logits, kind = in_a_fresh_process(tmp_path / "model", tmp_path)
    assert kind == str(dtype)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    config = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    assert "lm_head" in config["ignore"] or loaded.model.config.tie_word_embeddings
    assert config["quant_method"] == "compressed-tensors"
    assert not (tmp_path / "model" / "fedprune").exists()
