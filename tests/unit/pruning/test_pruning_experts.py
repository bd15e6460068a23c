"""The sums of experts: what the formula says, the same for every split, and never nonsense."""

import numpy as np
import pytest
import torch

from fedprune.errors import ModelError, WireError
from fedprune.models.mixture import find_experts
from fedprune.pruning.block_kinds import BlockSite
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.experts import ExpertRecording, ExpertSums, experts_per_token
from fedprune.pruning.kinds import find_kind
from fedprune.pruning.statistics import get_kind
from tests.support.architectures import tiny_model, token_samples
from tests.support.mixtures import ROUTERS, slow_sums

#: Called with what the router chose.
TOLD = tuple(family for family in ROUTERS if family != "llama4")
BLOCK = 1  # has experts in every family
KIND = ExpertSums()


def walk_to(loaded, samples, block=BLOCK):
    walk = BlockWalk(loaded, samples)
    while walk.position < block:
        walk.advance({})
    return walk


def sums_of(loaded, samples, block=BLOCK):
    return walk_to(loaded, samples, block).observe((), [KIND]).block["experts"]


def calls_of(loaded, samples):
    """Return what the experts of the block are called with: hidden, chosen, weights of each."""
    calls = []

    def see(_module, args, kwargs):
        calls.append(tuple(part.detach().clone() for part in (*args, *kwargs.values())))

    module = find_experts(loaded.layout.blocks[BLOCK]).module
    handle = module.register_forward_pre_hook(see, with_kwargs=True)
    walk_to(loaded, samples).advance({})
    handle.remove()
    return calls, module


@torch.no_grad()
def test_experts_that_get_all_tokens_are_seen_with_their_routers_weights():
    """Llama 4, from the formula: the router's weight multiplies what goes in."""
    loaded, samples = tiny_model("llama4"), token_samples(3, 12)
    mixture = loaded.layout.blocks[BLOCK].feed_forward
    inputs = []
    handle = mixture.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    found = sums_of(loaded, samples)
    handle.remove()
    expected = {name: [0] * 4 for name in found}
    for token in torch.cat([one.reshape(-1, 32) for one in inputs]).double():
        logits = mixture.router.weight.double() @ token
        expert = int(logits.argmax())
        weight = torch.sigmoid(logits[expert])
        inner = (weight * token) @ mixture.experts.gate_up_proj[expert].double()
        gate, up = inner[:24], inner[24:]
        made = (up * torch.nn.functional.silu(gate)) @ mixture.experts.down_proj[expert].double()
        units = {"saliency": made.norm(), "norms": made.norm(), "weights": weight}
        for name, value in units.items():
            expected[name][expert] += round(float(value) * 2**24)
        expected["tokens"][expert] += 1
    assert found["tokens"].tolist() == expected["tokens"]
    for name in ("saliency", "norms", "weights"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=64)
    assert experts_per_token(loaded) == 1


@pytest.mark.parametrize("family", TOLD)
def test_sums_are_those_of_the_formula_token_by_token(family):
    loaded, samples = tiny_model(family), token_samples(3, 12)
    found = sums_of(loaded, samples)
    calls, module = calls_of(loaded, samples)
    expected = slow_sums(calls, module, len(found["tokens"]))
    assert found["tokens"].tolist() == expected["tokens"]
    assert experts_per_token(loaded) == 2 and sum(expected["tokens"]) == 3 * 12 * 2
    for name in ("saliency", "weights", "norms"):
        assert found[name].dtype == np.int64
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=64)


def test_sums_of_parts_add_up_to_those_of_the_whole_to_the_last_bit():
    loaded, samples = tiny_model("qwen3_moe"), token_samples(8, 16)
    whole = sums_of(loaded, samples)
    for parts in ([8], [1] * 8, [3, 5], [5, 3], [2, 1, 4, 1]):
        start, total = 0, None
        for size in parts:
            part = sums_of(loaded, samples[start : start + size])
            total, start = part if total is None else KIND.add(total, part), start + size
        assert all(np.array_equal(total[name], whole[name]) for name in whole)
    backwards = sums_of(loaded, samples[::-1])
    assert all(np.array_equal(backwards[name], whole[name]) for name in whole)


def test_what_is_held_at_once_does_not_show(monkeypatch):
    loaded, samples = tiny_model("mixtral"), token_samples(2, 16)
    whole = sums_of(loaded, samples)
    monkeypatch.setattr("fedprune.pruning.experts._CHUNK_ELEMENTS", 200)
    pieces = sums_of(loaded, samples)
    assert np.array_equal(pieces["tokens"], whole["tokens"])
    for name in ("saliency", "weights", "norms"):
        np.testing.assert_allclose(pieces[name], whole[name], rtol=1e-6, atol=16)


def test_the_block_goes_on_as_if_nobody_had_looked():
    loaded, samples = tiny_model("gpt_oss"), token_samples(2, 16)
    watched, plain = BlockWalk(loaded, samples), BlockWalk(loaded, samples)
    watched.observe((), [KIND])
    watched.advance({})
    plain.advance({})
    assert all(map(torch.equal, watched.hidden, plain.hidden))


def test_inputs_of_experts_can_be_watched_beside_them():
    loaded, samples = tiny_model("mixtral"), token_samples(2, 16)
    both = walk_to(loaded, samples).observe([get_kind("columns")], [KIND])
    alone = walk_to(loaded, samples).observe([get_kind("columns")])
    for name, found in alone.linears["columns"].items():
        assert both.linears["columns"][name].exact == found.exact
    np.testing.assert_array_equal(
        both.block["experts"]["tokens"], sums_of(loaded, samples)["tokens"]
    )


def test_a_block_without_experts_has_no_sums():
    loaded = tiny_model("deepseek_v3")
    assert KIND.specs(BlockSite.of(loaded, 0)) == {}
    assert sums_of(loaded, token_samples(1, 8), block=0) == {}
    specs = KIND.specs(BlockSite.of(loaded, 1))
    assert {name: (spec.dtype, spec.shape) for name, spec in specs.items()} == dict.fromkeys(
        ("saliency", "weights", "norms", "tokens"), ("int64", (8,))
    )


def test_the_kind_is_known_by_name():
    assert isinstance(find_kind("experts"), ExpertSums) and KIND.exact


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_outputs_that_no_sum_can_hold_are_refused(bad):
    loaded = tiny_model("mixtral")
    with torch.no_grad():
        loaded.model.model.layers[BLOCK].mlp.experts.down_proj[2, 0, 0] = bad
    with pytest.raises(ModelError, match="finite|NaN"):
        sums_of(loaded, token_samples(4, 16))


def test_sums_that_overflow_are_refused():
    recording = ExpertRecording(find_experts(tiny_model("mixtral").layout.blocks[BLOCK]))
    recording._sums["norms"][:] = 2**63 - 1
    with pytest.raises(WireError, match="overflow"):
        recording._sum("norms", torch.tensor([0, 1]), torch.tensor([1, 1]))


def arrays(**changes):
    whole = {
        "saliency": np.array([5, 6, 0, 0]),
        "weights": np.array([3, 4, 0, 0]),
        "norms": np.array([9, 9, 0, 0]),
        "tokens": np.array([7, 1, 0, 0]),
    }
    return whole | {name: np.array(values) for name, values in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saliency": [-1, 6, 0, 0]}, "never negative"),
        ({"tokens": [9, 1, 0, 0]}, "9 tokens of 8 that were promised"),
        ({"norms": [9, 9, 1, 0]}, "without a token has sums"),
        ({"weights": [2**62, 4, 0, 0]}, "too large for a sum"),
    ],
)
def test_sums_that_no_texts_can_have_are_refused(changes, message):
    site = BlockSite.of(tiny_model("mixtral"), BLOCK)
    KIND.check(arrays(), site, 8)
    with pytest.raises(WireError, match=message):
        KIND.check(arrays(**changes), site, 8)
