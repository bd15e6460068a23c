"""Units are found by trying; here they are what each family's own code makes of its matrices."""

import numpy as np
import pytest
import torch
import transformers as hf

from fedprune.errors import ModelError
from fedprune.pruning.units import find_units, last_writer
from tests.support.architectures import FAMILIES, made_of, tiny_config, tiny_model

_GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_rows_before_and_a_column_after(family):
    found = find_units(tiny_model(family), "ffn")
    each = np.arange(found.count)[:, None]
    assert np.array_equal(found.columns, each)
    assert len(found.producers) == (2 if family in _GATED else 1)
    assert all(np.array_equal(rows, each) for rows in found.producers.values())


@pytest.mark.parametrize("family", _GATED)
def test_queries_go_with_the_keys_and_values_that_they_share(family):
    found, config = find_units(tiny_model(family), "heads"), tiny_config(family)
    size = 8 * 4 // config.num_key_value_heads
    assert found.linear == "self_attn.o_proj"
    assert np.array_equal(found.columns, np.arange(32).reshape(-1, size))
    assert np.array_equal(found.producers["self_attn.q_proj"], found.columns)
    few = np.arange(8 * config.num_key_value_heads).reshape(-1, 8)
    assert np.array_equal(found.producers["self_attn.k_proj"], few)
    assert np.array_equal(found.producers["self_attn.v_proj"], few)


def test_heads_in_one_matrix_side_by_side_and_interleaved():
    rows = np.arange(96)
    beside = find_units(tiny_model("gpt2"), "heads").producers["attn.c_attn"]
    assert np.array_equal(beside, rows.reshape(3, 4, 8).transpose(1, 0, 2).reshape(4, 24))
    mixed = find_units(tiny_model("gpt_neox"), "heads").producers["attention.query_key_value"]
    assert np.array_equal(mixed, rows.reshape(4, 24))


def test_gate_and_up_in_one_matrix():
    sizes = tiny_config("llama").to_dict() | {"pad_token_id": 0}
    loaded = made_of(hf.Phi3Config(**{k: sizes[k] for k in _SIZES}, pad_token_id=0))
    found = find_units(loaded, "ffn")
    fused = found.producers["mlp.gate_up_proj"]
    assert np.array_equal(fused, np.stack([np.arange(48), np.arange(48) + 48], 1))


_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_SIZES = (*_SIZES, "intermediate_size", "num_key_value_heads", "max_position_embeddings")


def test_heads_that_one_norm_mixes_are_refused():
    sizes = tiny_config("llama").to_dict()
    loaded = made_of(hf.Olmo2Config(**{k: sizes[k] for k in _SIZES}, pad_token_id=0))
    with pytest.raises(ModelError, match=r"`pruner.structure=heads` .* has none\. Use"):
        find_units(loaded, "heads")
    assert find_units(loaded, "ffn").count == 48


def test_one_group_of_heads_is_none_to_choose_from():
    with pytest.raises(ModelError, match="has none"):
        find_units(tiny_model("falcon"), "heads")  # all queries share one key and value


def test_a_model_is_left_as_it_was():
    loaded = tiny_model("llama")
    before = {name: one.clone() for name, one in loaded.model.state_dict().items()}
    find_units(loaded, "ffn")
    assert all(torch.equal(one, before[n]) for n, one in loaded.model.state_dict().items())
    forwards = [m for m in loaded.model.modules() if "forward" in m.__dict__]
    assert not forwards


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrix_that_is_added_to_the_hidden_states_last(family):
    loaded = tiny_model(family)
    if family in ("gemma2", "gemma3"):
        with pytest.raises(ModelError, match="changes what its last matrix returns"):
            last_writer(loaded, 0)
        return
    found = last_writer(loaded, 1)
    assert found == list(loaded.layout.linears(1))[-1]


def test_mixtures_have_heads_but_no_neurons_of_one_width():
    sizes = {key: getattr(tiny_config("llama"), key) for key in _SIZES}
    config = hf.MixtralConfig(**sizes, num_local_experts=3, num_experts_per_tok=2, head_dim=8)
    loaded = made_of(config)
    assert find_units(loaded, "heads").linear == "self_attn.o_proj"
    with pytest.raises(ModelError, match="its experts are no units of one width"):
        find_units(loaded, "ffn")
    with pytest.raises(ModelError, match="routes tokens to experts"):
        last_writer(loaded, 0)
