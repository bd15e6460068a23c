"""A block's loss and its gradient against plain autograd through the whole block."""

import copy

import numpy as np
import pytest
import torch

from fedprune.config import Pattern, config_from_overrides
from fedprune.errors import ModelError
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.paired import PairedWalk
from fedprune.pruning.reconstruction import FRACTION_BITS, BlockFit, held_out, unit_of
from fedprune.pruning.registry import make_pruner
from fedprune.wire.changes import LinearUpdate, SparseWeight
from tests.support.architectures import tiny_model, token_samples

HALF = MaskSpec(0.5, Pattern(), "row")
ONE = 1 << FRACTION_BITS


def pruned(walk: BlockWalk):
    pruner = make_pruner(config_from_overrides(["pruner=magnitude"]).pruner)
    return {name: pruner.prune(weight, None, HALF) for name, weight in walk.weights().items()}


def fit_of(model, samples, blocks: int = 1, holdout: float = 0.0, changes=None) -> BlockFit:
    """A fit of the block behind so many that were pruned by magnitude."""
    walk = PairedWalk(model, samples)
    for _ in range(blocks):
        walk.advance(pruned(walk))
    walk.start_from(changes or pruned(walk))
    return BlockFit(walk, 0, holdout)


def output_of(inner, layer, sample):
    """What a block gives when the model that it is part of runs."""
    outputs = []
    hook = layer.register_forward_hook(lambda _m, _a, out: outputs.append(out))
    inner(sample[None])
    hook.remove()
    return outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]


def plain_loss(model, samples, blocks: int = 1):
    """The same by running whole modules: loss, and gradients by the weights that are left."""
    module = copy.deepcopy(model.model).float()
    inner = module.get_decoder() if hasattr(module, "get_decoder") else module.model
    dense = copy.deepcopy(inner.layers[: blocks + 1])
    walk = BlockWalk(model, samples)
    for index in range(blocks + 1):
        for name, mask in pruned(walk).items():
            weight = inner.layers[index].get_submodule(name).weight
            weight.data = weight.data * torch.from_numpy(mask.to_bool())
        walk.advance(pruned(walk))
    total = 0.0
    for sample in samples:
        found = []
        for layers in (inner.layers[: blocks + 1], dense):
            kept, inner.layers = inner.layers, layers
            found.append(output_of(inner, layers[blocks], sample))
            inner.layers = kept
        own, target = found[0], found[1].detach()
        total = total + len(sample) * (own - target).square().sum() / target.square().sum()
    total.backward()
    return total, {
        name: weight.grad
        for name in pruned(BlockWalk(model, samples))
        for weight in [inner.layers[blocks].get_submodule(name).weight]
    }


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
def test_loss_and_gradient_are_those_of_plain_autograd(family):
    model, samples = tiny_model(family), token_samples(3, 12)
    fit = fit_of(model, samples)
    sums, losses = fit.gradient()
    expected, gradients = plain_loss(model, samples)
    assert losses.fitted_tokens == 36 and losses.held_out_tokens == 0
    assert losses.fitted / ONE == pytest.approx(float(expected), rel=1e-4)
    assert set(sums) == set(gradients)
    walk = BlockWalk(model, samples)
    walk.advance({})
    for name, mask in pruned(walk).items():
        kept = torch.from_numpy(mask.to_bool())
        plain = gradients[name][kept].double() * unit_of(walk.weights()[name])
        assert float((sums[name].double() / ONE - plain).abs().max()) < 1e-4 * float(
            plain.abs().max()
        )


def test_sums_do_not_depend_on_who_holds_which_sample():
    model, samples = tiny_model(), token_samples(12, 12)
    whole, losses = fit_of(model, samples, holdout=0.5).gradient()
    parts = [fit_of(model, samples[start::3], holdout=0.5).gradient() for start in range(3)]
    for name in whole:
        assert torch.equal(whole[name], sum(part[name] for part, _ in parts))
    assert losses == parts[0][1] + parts[1][1] + parts[2][1]
    assert losses.held_out_tokens and losses.fitted_tokens


@pytest.mark.parametrize("family", ["mixtral", "dbrx"])  # a dimension for experts; stacked rows
def test_experts_survivors_have_gradients(family):
    model, samples = tiny_model(family), token_samples(3, 24)
    sums, losses = fit_of(model, samples).gradient()
    experts = [name for name, ref in model.layout.linears(1).items() if ref.expert]
    assert sum(bool(sums[name].any()) for name in experts) > len(experts) // 2
    name = max(experts, key=lambda one: float(sums[one].abs().max()))
    fit = fit_of(model, samples)
    moved = {**fit.start, name: fit.start[name].clone()}
    place = int(sums[name].abs().argmax())
    step = 0.05 * fit.units[name]
    found = []
    for sign in (1, -1):
        moved[name] = fit.start[name].clone()
        moved[name][place] += sign * step
        found.append(fit.measured(moved).fitted / ONE)
    slope = (found[0] - found[1]) / (2 * step) * fit.units[name]
    assert slope == pytest.approx(int(sums[name][place]) / ONE, rel=0.05)


def test_local_steps_lower_the_loss_and_leave_masks_alone():
    model, samples = tiny_model(), token_samples(4, 16)
    fit = fit_of(model, samples)
    moved, before = fit.local_steps(15, 0.02)
    after = fit.measured(
        {name: one + moved[name] * fit.units[name] for name, one in fit.start.items()}
    )
    assert before == fit.measured(fit.start)
    assert after.fitted < 0.9 * before.fitted
    assert all(one.shape == fit.start[name].shape for name, one in moved.items())


def test_one_local_step_is_adams_first():
    """Every survivor goes one rate against its gradient: so it does with the sum of one client."""
    fit = fit_of(tiny_model(), token_samples(3, 12))
    sums, _ = fit.gradient()
    moved, _ = fit.local_steps(1, 0.01)
    for name, gradient in sums.items():
        clear = gradient.abs() > 1 << 12  # of others rounding may turn the sign
        assert clear.float().mean() > 0.5
        expected = -0.01 * gradient.sign().float()
        assert torch.allclose(moved[name][clear], expected[clear], rtol=1e-3)


def test_what_is_held_out_follows_from_the_tokens():
    samples = token_samples(400, 8)
    apart = [held_out(sample, 3, 0.25) for sample in samples]
    assert apart == [held_out(sample.clone(), 3, 0.25) for sample in samples]
    assert 60 < sum(apart) < 140
    assert apart != [held_out(sample, 4, 0.25) for sample in samples]
    assert not any(held_out(sample, 3, 0.0) for sample in samples)


def test_scaled_masks_and_values_are_where_they_start():
    model, samples = tiny_model(), token_samples(2, 8)
    walk = PairedWalk(model, samples)
    walk.advance(pruned(walk))
    weights, masks = walk.weights(), pruned(walk)
    name = "mlp.down_proj"
    counts = np.full(masks[name].survivors, 2, dtype=np.uint8)
    scaled = {**masks, name: LinearUpdate(masks[name], counts, 4)}
    kept = torch.from_numpy(masks[name].to_bool())
    assert torch.allclose(
        fit_of(model, samples, changes=scaled).start[name], 0.5 * weights[name][kept]
    )
    own = {**masks, name: SparseWeight.from_dense(3 * weights[name], masks[name])}
    assert torch.allclose(fit_of(model, samples, changes=own).start[name], 3 * weights[name][kept])


def test_a_destroyed_block_is_an_error_that_says_so():
    model, samples = tiny_model(), token_samples(2, 8)
    walk = PairedWalk(model, samples)
    changes = pruned(walk)
    name = "mlp.down_proj"
    huge = torch.full(changes[name].shape, 1e38)
    changes[name] = SparseWeight.from_dense(huge, changes[name])
    walk.start_from(changes)
    with pytest.raises(ModelError, match="block 0: what it gives is NaN or infinite"):
        BlockFit(walk, 0, 0.0).gradient()
