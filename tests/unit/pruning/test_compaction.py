"""A folder with narrower matrices says what the model with units of zeros says."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fedprune.errors import ModelError
from fedprune.models.reshape import export_reshaped
from fedprune.pruning.compaction import narrowed_config
from fedprune.pruning.units import find_units
from tests.support.architectures import FAMILIES, made_of, tiny_config, tiny_model, token_samples
from tests.support.smaller import shrunk, simulated

_FFN = [family for family in FAMILIES if family != "bloom"]
_HEADS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi"]


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
