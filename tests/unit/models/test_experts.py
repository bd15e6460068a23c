"""Experts in fused parameters: which matrices there are, how they lie, which tokens they get."""

import pytest
import torch
import transformers as hf
from torch import nn

from fedprune.errors import ModelError
from fedprune.models.changes import changed_tensors
from fedprune.models.empty import empty_weights
from fedprune.models.experts import expert_matrices, watched_experts
from fedprune.models.layout import find_layout
from fedprune.pruning.blocks import BlockWalk, input_groups
from fedprune.wire.masks import BitMask
from tests.support.architectures import MIXTURES, tiny_model, token_samples

LAST = 1  # a block with experts in every family


@pytest.mark.parametrize("family", MIXTURES)
def test_every_expert_has_its_matrices_and_no_router_is_among_them(family):
    loaded = tiny_model(family)
    linears = loaded.layout.linears(LAST)
    experts = {name: linear for name, linear in linears.items() if linear.expert}
    assert experts and not [name for name in linears if "router" in name or name == "mlp.gate"]
    for key in {linear.key for linear in experts.values()}:
        parameter = loaded.layout.blocks[LAST].get_parameter(key)
        own = [linear for linear in experts.values() if linear.key == key]
        size = parameter.numel() // len(own)
        assert [linear.expert.index for linear in own] == list(range(len(own)))
        covered = torch.zeros_like(parameter)
        for linear in own:
            linear.orient(covered).add_(1)
            assert linear.orient(parameter).shape == linear.shape
            first = parameter.flatten()[linear.expert.index * size :].data_ptr()
            assert loaded.weight(LAST, linear.name).data_ptr() == first
        assert bool((covered == 1).all())


def test_names_read_as_the_modules_do():
    names = list(tiny_model("mixtral").layout.linears(0))
    assert names[4:7] == [
        "mlp.experts.0.gate_up_proj",
        "mlp.experts.0.down_proj",
        "mlp.experts.1.gate_up_proj",
    ]
    assert "mlp.input_linear.3" in tiny_model("jetmoe").layout.linears(0)
    layout = tiny_model("qwen3_moe").layout
    assert (
        layout.parameter_name(1, "mlp.experts.7.down_proj")
        == "model.layers.1.mlp.experts.down_proj"
    )


def routed_inputs(model, block, samples):
    """What enters each expert's matrices: the library's own experts, watched by two plain hooks.

    Returns (parameter, expert) -> inputs, from the routing that the experts' module is called with.
    """
    found = {}
    experts = model.model.layers[block].mlp.experts

    def see(module, args, kwargs):
        hidden, index, _ = (*args, *kwargs.values())
        for expert in range(module.num_experts):
            chosen = hidden[(index == expert).any(-1)].double()
            weight = module.gate_up_proj[expert].double()
            made = chosen @ (weight if module.is_transposed else weight.T)
            if module.has_bias:
                made = made + module.gate_up_proj_bias[expert].double()
            found.setdefault(("gate_up_proj", expert), []).append(chosen)
            found.setdefault(("down_proj", expert), []).append(module._apply_gate(made))

    handle = experts.register_forward_pre_hook(see, with_kwargs=True)
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample[None])
    handle.remove()
    return {key: torch.cat(parts) for key, parts in found.items()}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3"])
def test_statistics_are_of_the_tokens_that_are_routed_to_an_expert(family):
    loaded, samples = tiny_model(family), token_samples(3, 16)
    walk = BlockWalk(loaded, samples)
    walk.advance({})
    columns, moments = walk.collect(), walk.collect("moments")
    expected = routed_inputs(loaded.model, LAST, samples)
    for name, linear in loaded.layout.linears(LAST).items():
        if linear.expert is None:
            assert columns[name].tokens == 48
            continue
        inputs = expected[linear.expert.parameter, linear.expert.index]
        assert columns[name].tokens == moments[name].tokens == len(inputs)
        torch.testing.assert_close(
            columns[name].sum_squares.double(), (inputs**2).sum(0), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(
            moments[name].moments.double(), inputs.T @ inputs, rtol=1e-4, atol=1e-5
        )


def test_experts_that_get_all_tokens_as_zeros_count_those_that_are_not():
    loaded, samples = tiny_model("llama4"), token_samples(3, 16)
    walk = BlockWalk(loaded, samples)
    walk.advance({})
    found = walk.collect()
    seen = []
    experts = loaded.model.model.layers[LAST].feed_forward.experts
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args[0].view(4, -1, 32)))
    with torch.no_grad():
        for sample in samples:
            loaded.model(input_ids=sample[None])
    handle.remove()
    inputs = torch.cat(seen, 1).double()
    for expert in range(4):
        statistic = found[f"feed_forward.experts.{expert}.gate_up_proj"]
        assert statistic.tokens == int((inputs[expert] != 0).any(-1).sum())
        squares = (inputs[expert] ** 2).sum(0)
        torch.testing.assert_close(statistic.sum_squares.double(), squares, rtol=1e-4, atol=1e-6)
    assert (
        sum(found[f"feed_forward.experts.{expert}.down_proj"].tokens for expert in range(4)) == 48
    )


def test_rows_of_experts_that_are_stacked_are_told_apart():
    """DBRX, from the formula: w1 and v1 get the tokens, w2 what becomes of them."""
    loaded, samples = tiny_model("dbrx"), token_samples(3, 16)
    walk = BlockWalk(loaded, samples)
    walk.advance({})
    found = walk.collect()
    mixture = loaded.layout.blocks[LAST].ffn
    calls = []
    handle = mixture.experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.no_grad():
        for sample in samples:
            loaded.model(input_ids=sample[None])
    handle.remove()
    glu = mixture.experts.mlp
    for expert in range(4):
        rows = slice(24 * expert, 24 * expert + 24)
        w1, v1 = glu.w1[rows].double(), glu.v1[rows].double()
        inputs = torch.cat([h.reshape(-1, 32)[(i == expert).any(-1)] for h, i, _ in calls]).double()
        inner = torch.nn.functional.silu(inputs @ w1.T) * (inputs @ v1.T)
        for name, expected in (("w1", inputs), ("v1", inputs), ("w2", inner)):
            statistic = found[f"ffn.experts.mlp.{expert}.{name}"]
            assert statistic.tokens == len(inputs) > 0
            squares = (expected**2).sum(0)
            torch.testing.assert_close(
                statistic.sum_squares.double(), squares, rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("family", MIXTURES)
def test_a_watched_model_computes_bit_for_bit_what_the_library_does(family):
    loaded = tiny_model(family)
    layout, tokens = loaded.layout, token_samples(1, 16)[0][None]
    if family not in ("llama4", "jetmoe", "dbrx"):
        loaded.model.set_experts_implementation("eager")
    with torch.no_grad():
        expected = loaded.model(input_ids=tokens).logits
        modules = {
            id(m): m for ref in layout.linears(LAST).values() if ref.expert for m in [ref.module]
        }
        seen = []
        for module in modules.values():
            lies = expert_matrices(module, layout.width)
            with watched_experts(module, lies, lambda *one: seen.append(one)):
                assert torch.equal(loaded.model(input_ids=tokens).logits, expected)
    assert seen


def test_the_chosen_implementation_is_back_afterwards():
    loaded = tiny_model("mixtral")
    chosen = loaded.model.config._experts_implementation
    BlockWalk(loaded, token_samples(1, 8)).collect()
    assert loaded.model.config._experts_implementation == chosen != "eager"


@pytest.mark.parametrize("family", MIXTURES)
def test_inputs_are_told_apart_whatever_is_routed_where(family):
    loaded = tiny_model(family)
    groups = input_groups(loaded)
    for block, inputs in enumerate(groups):
        linears = loaded.layout.linears(block)
        assert sorted(name for names in inputs for name in names) == sorted(linears)
        assert all(len(names) == 1 for names in inputs if linears[names[0]].expert)


def test_one_experts_change_leaves_the_others_alone():
    loaded = tiny_model("gpt_oss")
    name, tensors = "mlp.experts.2.down_proj", loaded.block_tensors(0)
    nothing = BitMask.from_bool(torch.zeros(32, 32, dtype=torch.bool).numpy())
    changed = changed_tensors(loaded.layout, 0, tensors, {name: nothing})["mlp.experts.down_proj"]
    dense = tensors["mlp.experts.down_proj"]
    assert not changed[2].any() and torch.equal(changed[[0, 1, 3]], dense[[0, 1, 3]])


class Squares(nn.Module):
    """Experts that say the wrong thing of themselves, or use a parameter in no product."""

    def __init__(self, transposed, product):
        super().__init__()
        self.is_transposed, self.has_gate, self.product = transposed, True, product
        self.up_proj = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, hidden):
        if self.product:
            return nn.functional.linear(hidden, self.up_proj[1])
        return (hidden[:, None, :] * self.up_proj[1]).sum(-1)


@pytest.mark.parametrize(
    ("module", "message"),
    [(Squares(True, True), "the other way round"), (Squares(False, False), "`up_proj` goes into")],
)
def test_experts_that_are_used_in_another_way_are_refused(module, message):
    with pytest.raises(ModelError, match=message):
        with watched_experts(module, expert_matrices(module), lambda *_: None):
            module(torch.randn(3, 4))
    module(torch.randn(3, 4))  # nothing watches any more


def test_experts_that_cannot_be_told_apart_are_refused_however_small_their_share(monkeypatch):
    """Rows that are stacked under names that nobody knows."""
    monkeypatch.setattr("fedprune.models.experts._STACKED", {})
    config = hf.DbrxConfig(
        d_model=64,
        n_heads=4,
        n_layers=2,
        vocab_size=100,
        ffn_config={"ffn_hidden_size": 8, "moe_num_experts": 2, "moe_top_k": 1},
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
    )
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for n, p in model.named_parameters() if "experts" in n) < 16_000
    with pytest.raises(ModelError, match=r"experts, `transformer.blocks.0.ffn.experts.mlp.w1`"):
        find_layout(model)


def test_a_model_of_experts_beyond_all_memory_is_built_without_any():
    config = hf.Qwen3MoeConfig(
        hidden_size=8192,
        num_hidden_layers=1,
        num_attention_heads=64,
        num_key_value_heads=2,
        vocab_size=20,
        moe_intermediate_size=16384,
        num_experts=4096,
    )
    with empty_weights():
        model = hf.AutoModelForCausalLM.from_config(config)
    shapes = find_layout(model).shapes()[0]  # 4096 * 3 * 8192 * 16384 float32: 6.6 TB
    assert shapes["mlp.experts.4095.down_proj"] == (8192, 16384)
    assert {tensor.device.type for tensor in model.buffers()} == {"cpu"}
