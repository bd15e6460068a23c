"""A folder with narrower matrices says what the model with units of zeros says."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fedprune.errors import ModelError
from fedprune.models.changes import changed_tensors
from fedprune.models.reshape import export_reshaped
from fedprune.pruning.compaction import compacted, narrowed_config
from fedprune.pruning.statistics import MomentStatistics
from fedprune.pruning.structured import StructuredPruner
from fedprune.pruning.units import find_units
from tests.support.architectures import FAMILIES, made_of, tiny_config, tiny_model, token_samples

_FFN = [family for family in FAMILIES if family != "bloom"]
_HEADS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi"]


def shrunk(loaded, structure, sparsity=0.5):
    """Changes of every block on moments of random inputs, and how the model is compacted."""
    units, pruner = find_units(loaded, structure), StructuredPruner(structure, 8, True, 0.01)
    changes = {}
    for block in range(len(loaded.layout.blocks)):
        weights = {name: loaded.weight(block, name) for name in units.linears}
        width = weights[units.linear].shape[1]
        inputs = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(block))
        stats = MomentStatistics(inputs.T @ inputs, len(inputs))
        changes[block] = pruner.prune_units(weights, stats, units, sparsity)
    kept = changes[0][units.linear].mask.to_bool().any(0).sum() // units.size
    return changes, compacted(loaded, units, narrowed_config(loaded, units, int(kept)), changes)


def simulated(loaded, changes, tokens):
    """What the dense architecture says with the changed weights."""
    state = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    for block, done in changes.items():
        prefix = f"{loaded.layout.prefix}.{block}."
        tensors = changed_tensors(loaded.layout, block, loaded.block_tensors(block), done)
        state |= {prefix + n: t for n, t in tensors.items() if prefix + n in state}
    before = loaded.model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    loaded.model.load_state_dict(state)
    with torch.no_grad():
        logits = loaded.model(input_ids=tokens).logits
    loaded.model.load_state_dict(before)
    return logits


@pytest.mark.parametrize(
    ("family", "structure"), [(f, "ffn") for f in _FFN] + [(f, "heads") for f in _HEADS]
)
def test_the_folder_says_what_the_zeros_say(tmp_path, family, structure):
    loaded = tiny_model(family)
    changes, reshape = shrunk(loaded, structure)
    export_reshaped(loaded, changes, reshape, tmp_path / "model")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    (sample,) = token_samples(1, 16)
    with torch.no_grad():
        found = again(input_ids=sample[None]).logits
    torch.testing.assert_close(
        found, simulated(loaded, changes, sample[None]), rtol=1e-4, atol=1e-4
    )
    fewer = sum(one.numel() for one in again.parameters())
    assert fewer < sum(one.numel() for one in loaded.model.parameters())


def test_blocks_lose_different_units(tmp_path):
    changes, _ = shrunk(tiny_model("llama"), "ffn")
    kept = [done["mlp.down_proj"].mask.to_bool().any(0) for done in changes.values()]
    assert not np.array_equal(kept[0], kept[1])


@pytest.mark.parametrize(
    ("family", "structure", "why"),
    [
        ("bloom", "ffn", "no key of its configuration says how many there are"),
        ("gpt2", "heads", "divisible by num_heads"),
        ("opt", "heads", "divisible by num_heads"),
        ("gpt_neox", "heads", "not divisible by the number of attention heads"),
    ],
)
def test_shapes_that_an_architecture_cannot_have_are_refused_with_the_reason(
    family, structure, why
):
    loaded = tiny_model(family)
    units = find_units(loaded, structure)
    with pytest.raises(ModelError, match=why):
        narrowed_config(loaded, units, units.count - 1)


def test_a_number_of_heads_that_can_be_loaded_is_named():
    loaded = tiny_model("phi")  # MHA of four
    units = find_units(loaded, "heads")
    assert narrowed_config(loaded, units, 3)["num_attention_heads"] == 3
    config = tiny_config("llama")
    loaded = made_of(config.from_dict(config.to_dict() | {"num_key_value_heads": 4}))
    with pytest.raises(
        ModelError, match=r"multiple of .* heads \(3\)\. .*It can have 2: sparsity=0\.5"
    ):
        narrowed_config(loaded, find_units(loaded, "heads"), 3)
