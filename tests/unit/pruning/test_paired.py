"""The dense model as a target: what is recorded of both walks, and the weight that follows."""

import numpy as np
import pytest
import torch

from fedprune.config import Pattern, config_from_overrides
from fedprune.errors import ModelError, WireError
from fedprune.models.device import Limits
from fedprune.models.loading import load_model
from fedprune.pruning.blocks import BlockWalk, prune_blocks
from fedprune.pruning.groups import BlockSpec, MaskSpec
from fedprune.pruning.hessian import retargeted
from fedprune.pruning.kinds import kind_names
from fedprune.pruning.paired import PairedWalk, walk_for
from fedprune.pruning.registry import make_pruner, towards
from fedprune.pruning.statistics import get_kind
from tests.support.architectures import tiny_model, token_samples
from tests.support.moments import damped64

HALF = MaskSpec(0.5, Pattern(), "row")


def inputs_of(walk: BlockWalk, linear: str) -> torch.Tensor:
    """What enters a linear of the block where a walk stands, (tokens, d_in), float64."""
    seen = []
    module = walk.model.layout.linears(walk.position)[linear].module
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    for _ in walk.outputs():
        pass
    hook.remove()
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in seen]).double()


def pruned_walk(model, samples, blocks: int, **more) -> PairedWalk:
    """A walk behind so many blocks that were pruned by magnitude."""
    walk = PairedWalk(model, samples, **more)
    pruner = make_pruner(config_from_overrides(["pruner=magnitude"]).pruner)
    for _ in range(blocks):
        walk.advance({name: pruner.prune(w, None, HALF) for name, w in walk.weights().items()})
    return walk


def test_the_target_is_the_minimum_of_its_sum_of_squares():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=rng)
    pruned = torch.randn(60, 8, generator=rng)
    dense = pruned + 0.3 * torch.randn(60, 8, generator=rng)
    moments, cross = pruned.T @ pruned, (dense - pruned).T @ pruned
    penalty = 0.05 * float(moments.diagonal().mean())
    free = weight.double().clone().requires_grad_()
    outputs = dense.double() @ weight.double().T
    found = retargeted(weight, moments, cross, 0.05)
    with torch.no_grad():
        free.copy_(found)
    gap = (outputs - pruned.double() @ free.T).square().sum()
    (gap + penalty * (free - weight).square().sum()).backward()
    scale = (outputs.T @ pruned.double()).abs().max()
    assert float(free.grad.abs().max() / scale) < 1e-5
    assert not torch.allclose(found, weight, atol=1e-2)


def test_where_nothing_deviates_the_target_is_the_weight():
    weight, moments = torch.randn(4, 6), torch.eye(6)
    assert torch.equal(retargeted(weight, moments, torch.zeros(6, 6), 0.01), weight)
    everything = retargeted(weight, moments, torch.zeros(6, 6), 1.0)
    assert torch.equal(everything, weight)


def test_an_input_that_was_always_zero_keeps_its_weights():
    inputs = torch.randn(50, 6)
    inputs[:, 2] = 0
    dense = inputs + 0.2 * torch.randn(50, 6)
    weight = torch.randn(3, 6)
    found = retargeted(weight, inputs.T @ inputs, (dense - inputs).T @ inputs, 0.01)
    assert torch.allclose(found[:, 2], weight[:, 2])
    expected = weight.double() + weight.double() @ ((dense - inputs).T @ inputs).double() @ (
        torch.linalg.inv(damped64(inputs.T @ inputs, 0.01))
    )
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("batch", [1, 2])
def test_recorded_deviations_are_those_of_both_walks(family, batch):
    model, samples = tiny_model(family), token_samples(3, 12)
    walk = pruned_walk(model, samples, 1, limits=Limits(batch_size=batch))
    dense = BlockWalk(model, samples)
    dense.advance({})
    found = walk.collect("paired_moments")
    for name, one in found.items():
        own, other = inputs_of(walk, name), inputs_of(dense, name)
        assert one.tokens == len(own) == 36
        assert torch.allclose(one.moments.double(), own.T @ own, rtol=1e-4, atol=1e-4)
        cross = (other - own).T @ own
        assert float((one.deviation.cross.double() - cross).norm() / cross.norm()) < 1e-4
        assert torch.allclose(
            one.deviation.squares.double(), (other - own).square().sum(0), rtol=1e-3, atol=1e-5
        )
    assert torch.allclose(
        torch.cat(list(walk.dense_hidden)), torch.cat(list(dense.hidden)), atol=1e-6
    )


def test_a_walk_goes_on_from_both_hidden_states():
    model, samples = tiny_model(), token_samples(2, 12)
    walk = pruned_walk(model, samples, 1)
    resumed = PairedWalk(
        model, samples, hidden=walk.hidden, dense=walk.dense_hidden, start=walk.position
    )
    for name, one in walk.collect("paired_moments").items():
        again = resumed.collect("paired_moments")[name]
        assert torch.equal(one.deviation.cross, again.deviation.cross)


def test_experts_are_not_compared():
    model, samples = tiny_model("mixtral"), token_samples(3, 16)
    walk = pruned_walk(model, samples, 1)
    found = walk.collect("paired_moments")
    experts = {name for name, ref in model.layout.linears(1).items() if ref.expert}
    assert experts
    assert all(found[name].deviation is None for name in experts)
    assert all(found[name].deviation is not None for name in set(found) - experts)


def test_a_walk_of_one_model_cannot_compare():
    with pytest.raises(ModelError, match="PairedWalk"):
        BlockWalk(tiny_model(), token_samples(1, 8)).collect("paired_moments")
    assert "paired_moments" not in kind_names()


def test_statistics_travel_and_add_up():
    kind = get_kind("paired_moments")
    parts = []
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        recording = kind.start(5)
        own = torch.randint(-4, 5, (2, 7, 5), generator=rng).float()  # sums without rounding
        recording.compare(own, own + torch.randint(-2, 3, own.shape, generator=rng))
        parts.append(recording.close())
    total = kind.add(kind.add(parts[0], parts[1]), parts[2])
    other = kind.add(parts[0], kind.add(parts[2], parts[1]))
    assert torch.equal(total.deviation.cross, other.deviation.cross)
    again = kind.read(kind.arrays(total), 5, total.tokens)
    assert torch.equal(again.deviation.squares, total.deviation.squares)
    for name in ("cross", "squares"):
        broken = {**kind.arrays(total), name: kind.arrays(total)[name] * np.float32(np.nan)}
        with pytest.raises(WireError, match=name):
            kind.read(broken, 5, total.tokens)


@pytest.mark.parametrize("pruner", ["sparsegpt", "alps", "sparseswaps"])
def test_pruned_blocks_come_nearer_to_the_dense_model(pruner):
    """The point of it: what a block gives behind pruned blocks is nearer to what it should."""
    options = ["strategy=fedhessian", "schedule=iterative", f"pruner={pruner}", "sparsity=0.5"]
    config = config_from_overrides([*options, "strategy.target=dense"])
    model = load_model(config.model)
    samples = token_samples(8, 64)
    gaps = {}
    for name, solver in (
        ("pruned", make_pruner(config.pruner)),
        ("dense", towards(make_pruner(config.pruner), config)),
    ):
        walk = walk_for(solver)(model, samples)
        assert isinstance(walk, PairedWalk) == (name == "dense")
        outcome = PairedWalk(model, samples)
        for _, changes in prune_blocks(
            walk, solver, dict.fromkeys(range(3), BlockSpec(0.5, Pattern(), "row"))
        ):
            outcome.advance(changes)
        away = torch.cat(list(outcome.hidden)) - torch.cat(list(outcome.dense_hidden))
        gaps[name] = float(away.square().sum())
    assert gaps["dense"] < gaps["pruned"]


def test_quantised_weights_are_those_of_the_target():
    config = config_from_overrides(
        ["strategy=fedhessian", "schedule=iterative", "pruner=gptq", "strategy.target=dense"]
        + ["sparsity=0"]
    )
    solver = towards(make_pruner(config.pruner), config)
    kind = get_kind("paired_moments").start(128)
    rng = torch.Generator().manual_seed(1)
    own = torch.randn(300, 128, generator=rng)
    kind.compare(own, own + 0.3 * torch.randn(300, 128, generator=rng))
    found, weight = kind.close(), torch.randn(16, 128, generator=rng).bfloat16()
    change = solver.prune(weight, found, HALF)
    plain = solver.pruner.prune(found.target(weight, 0.01).bfloat16(), found, HALF)
    assert torch.equal(change.dense(), plain.dense())
    assert change.dense().dtype == torch.bfloat16
