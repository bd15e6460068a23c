"""Every kind of smaller model loads where nobody knows this package, and says what was meant."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedprune.models.export import export_model
from fedprune.models.loading import loaded_from
from fedprune.models.mixture import find_mixture, without_experts
from fedprune.models.reshape import Reshape, export_reshaped
from fedprune.pruning.grid import Grid
from fedprune.pruning.rounding import round_weight
from tests.support.architectures import made_of, tiny_config, tiny_model, tiny_tokenizer
from tests.support.fresh import TOKENS, in_a_fresh_process
from tests.support.mixtures import restricted_routers
from tests.support.smaller import logits_without, shrunk, simulated

EIGHT_BITS = Grid(8, None, True)
FAMILIES = ("llama", "qwen3", "gemma3", "opt", "gpt2", "mixtral")


def deep(family):
    """A model of three blocks."""
    table, kind = tiny_config(family).to_dict(), type(tiny_config(family))
    key = kind.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if table[key] < 3:
        table.pop("layer_types", None)
    return made_of(kind.from_dict(table | {key: 3}))


def opened(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return loaded_from(model, tiny_tokenizer(), str(folder))


def rounded(loaded):
    """Return every linear in 8 bits, a scale a row."""
    return {
        block: {
            name: round_weight(loaded.weight(block, name), torch.ones(shape[1]), EIGHT_BITS, 0.01)
            for name, shape in shapes.items()
        }
        for block, shapes in enumerate(loaded.layout.shapes())
    }


def made(family, kind, folder):
    """Export a smaller model and return the logits that it must have."""
    loaded = deep(family) if kind == "blocks" else tiny_model(family)
    if kind == "blocks":
        export_reshaped(loaded, {}, Reshape(blocks=(0, 2)), folder)
        return logits_without(loaded, (1,), TOKENS)
    if kind == "experts":
        keep = dict.fromkeys(find_mixture(loaded).experts, (0, 1, 3))
        export_reshaped(loaded, {}, without_experts(loaded, keep), folder)
        with torch.no_grad(), restricted_routers(loaded, family, keep):
            return loaded.model(input_ids=TOKENS).logits
    changes, reshape = shrunk(loaded, kind)
    export_reshaped(loaded, changes, reshape, folder)
    return simulated(loaded, changes, TOKENS)


def test_fewer_blocks_units_and_experts(tmp_path):
    kinds = [
        *((family, "blocks") for family in FAMILIES),
        *((family, "ffn") for family in FAMILIES if family != "mixtral"),  # docs/strategies.md
        *((family, "heads") for family in ("llama", "qwen3", "gemma3", "mixtral")),
        ("mixtral", "experts"),
    ]
    expected = {one: made(*one, tmp_path / "-".join(one)) for one in kinds}
    found = in_a_fresh_process([tmp_path / "-".join(one) for one in kinds], tmp_path)
    for one, logits in expected.items():
        there, _ = found[str(tmp_path / "-".join(one))]
        assert torch.allclose(there, logits, rtol=1e-4, atol=1e-4), one


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None,
    reason="compressed-tensors is not installed: pip install 'fedprune[quantized]'",
)
def test_what_is_smaller_already_is_quantised(tmp_path):
    """A deployer's combinations: fewer units first, then 8 bits of what is left."""
    expected = {}
    for family, kind in (
        *(("llama", "ffn"), ("llama", "blocks"), ("qwen3", "ffn"), ("opt", "ffn")),
        *(("gemma3", "blocks"), ("mixtral", "experts"), ("mixtral", "blocks")),
    ):
        made(family, kind, tmp_path / "smaller" / f"{family}-{kind}")
        loaded = opened(tmp_path / "smaller" / f"{family}-{kind}")
        changes, folder = rounded(loaded), tmp_path / f"{family}-{kind}"
        export_model(loaded, changes, folder)
        expected[folder] = simulated(loaded, changes, TOKENS)
    found = in_a_fresh_process(list(expected), tmp_path)
    for folder, logits in expected.items():
        assert torch.allclose(found[str(folder)][0], logits, rtol=1e-4, atol=1e-4), folder
