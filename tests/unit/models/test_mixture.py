"""A mixture with fewer experts: what belongs to each is found, cut, and loads as it is."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedprune.errors import ModelError
from fedprune.models.loading import loaded_from
from fedprune.models.mixture import Mixture, find_experts, find_mixture, parts_of, without_experts
from fedprune.models.reshape import export_reshaped
from tests.support.architectures import tiny_config, tiny_model, tiny_tokenizer, token_samples
from tests.support.mixtures import ROUTERS, restricted_routers

#: What remains; of DeepSeek-V3 the same number of each of the router's groups.
KEPT = {
    "mixtral": (0, 1, 3),
    "qwen3_moe": (1, 2, 4, 7),
    "olmoe": (0, 5, 6),
    "gpt_oss": (1, 2, 3),
    "deepseek_v3": (0, 2, 3, 4, 5, 7, 9, 10, 11),
    "llama4": (0, 2, 3),
    "dbrx": (1, 2, 3),
}


def tiny_mixture(family):
    """Return a tiny mixture; DeepSeek-V3 with correction biases and three groups of four."""
    if family != "deepseek_v3":
        return tiny_model(family)
    config = tiny_config(family)
    config.n_routed_experts, config.n_group, config.topk_group = 12, 3, 2
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn(len(buffer)))
    return loaded_from(model, tiny_tokenizer(), "tiny")


def kept_everywhere(loaded, kept):
    """Return the same experts for each block that has any."""
    return dict.fromkeys(find_mixture(loaded).experts, kept)


@pytest.mark.parametrize("family", ROUTERS)
def test_what_remains_is_the_dense_model_with_routers_that_choose_among_it(family, tmp_path):
    loaded, kept = tiny_mixture(family), KEPT[family]
    keep = kept_everywhere(loaded, kept)
    export_reshaped(loaded, {}, without_experts(loaded, keep), tmp_path / "small")
    small, told = AutoModelForCausalLM.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    for block in keep:
        blocks = small.get_submodule(loaded.layout.prefix)
        assert find_experts(blocks[block]).count == len(kept)
    tokens = torch.stack(token_samples(3, 20))
    with torch.no_grad():
        found = small(input_ids=tokens).logits
        with restricted_routers(loaded, family, keep):
            expected = loaded.model(input_ids=tokens).logits
        dense = loaded.model(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (dense - expected).abs().max() > 1e-3  # which a model without a router would not show


def test_biases_router_rows_and_correction_biases_go_with_their_expert():
    gpt_oss = tiny_mixture("gpt_oss")
    cut = without_experts(gpt_oss, kept_everywhere(gpt_oss, (1, 3))).tensors
    deepseek = tiny_mixture("deepseek_v3")
    kept = KEPT["deepseek_v3"]
    cut_deepseek = without_experts(deepseek, kept_everywhere(deepseek, kept)).tensors
    for loaded, cut_one, names, left in (
        (
            gpt_oss,
            cut,
            ("experts.down_proj_bias", "experts.gate_up_proj_bias", "router.bias", "router.weight"),
            (1, 3),
        ),
        (deepseek, cut_deepseek, ("gate.e_score_correction_bias", "gate.weight"), kept),
    ):
        for name in names:
            full = f"model.layers.1.mlp.{name}"
            tensor = loaded.tensor(full)
            assert torch.equal(cut_one(full, tensor), tensor[list(left)])
    shared = deepseek.tensor("model.layers.1.mlp.shared_experts.up_proj.weight")
    assert cut_deepseek("model.layers.1.mlp.shared_experts.up_proj.weight", shared) is shared


def test_parts_of_a_dimension_are_consecutive():
    tensor = torch.arange(24).reshape(2, 12)
    assert parts_of(tensor, 1, 4, (0, 2)).tolist() == [[0, 1, 2, 6, 7, 8], [12, 13, 14, 18, 19, 20]]


def test_a_dense_model_has_none():
    with pytest.raises(ModelError, match="LlamaForCausalLM has no experts.*or set `model.path`"):
        find_mixture(tiny_model("llama"))


def test_experts_that_are_called_in_a_way_of_their_own_cannot_be_reached():
    with pytest.raises(ModelError, match=r"JetMoe\w+\) in JetMoe\w+ calls .*in a way of its own"):
        find_mixture(tiny_model("jetmoe"))


def test_a_table_that_routes_tokens_is_refused():
    loaded = tiny_model("mixtral")
    loaded.layout.blocks[1].mlp.register_buffer("table", torch.zeros(3, dtype=torch.long))
    with pytest.raises(ModelError, match=r"`model\.layers\.1\.mlp\.table` holds whole numbers"):
        find_mixture(loaded)


@pytest.mark.parametrize("kept", [(), (0, 0), (2, 1), (0, 4), (-1, 2)])
def test_what_remains_must_be_some_of_the_experts(kept):
    loaded = tiny_model("mixtral")
    with pytest.raises(ModelError, match="must be some of 0 to 3 in ascending order"):
        without_experts(loaded, {0: (0, 1), 1: kept})


def test_a_block_without_experts_keeps_none():
    loaded = tiny_mixture("deepseek_v3")
    with pytest.raises(ModelError, match="Block 0 has no experts"):
        without_experts(loaded, {0: (0,)} | kept_everywhere(loaded, KEPT["deepseek_v3"]))


def test_as_many_must_remain_in_each_block():
    loaded = tiny_model("mixtral")
    with pytest.raises(ModelError, match="2 and 3 experts cannot remain in different blocks"):
        without_experts(loaded, {0: (0, 1), 1: (0, 1, 2)})


def test_a_model_that_no_configuration_describes_is_refused():
    loaded = tiny_model("mixtral")
    loaded.model.config.num_local_experts = 5  # as where a size follows from something else
    with pytest.raises(ModelError, match="No key of the configuration of MixtralForCausalLM"):
        without_experts(loaded, {0: (0, 1), 1: (0, 1)})


@pytest.mark.parametrize(
    ("experts", "groups", "opened", "top_k", "most"),
    [
        (8, 1, 1, 2, 6),
        (8, 1, 1, 8, 0),
        (256, 8, 4, 8, 240),  # a group's best two are compared: two of each remain
        (16, 4, 1, 3, 4),  # three of the only open group are needed
        (8, 8, 8, 2, 0),  # groups of one lose none
    ],
)
def test_how_many_can_go(experts, groups, opened, top_k, most):
    assert Mixture({0: experts}, groups, opened).most_dropped(top_k) == most
