"""What a model's inputs can be at most holds for any text, pruned blocks before them or not."""

import pytest
import torch

from fedprune.config import Pattern, config_from_overrides
from fedprune.pruning.blocks import BlockWalk, prune_on
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.loudness import most_mean_squares
from fedprune.pruning.registry import make_pruner
from tests.support.architectures import tiny_model, token_samples
from tests.support.jobs import samples_of, whole_model


def means(model, samples, sparsity: float) -> list[dict[str, float]]:
    """The mean squares of inputs, each block on what the pruned blocks before it make."""
    walk, found = BlockWalk(model, samples), []
    pruner = make_pruner(config_from_overrides(["pruner=wanda"]).pruner)
    while walk.blocks_left:
        sums = walk.collect()
        found.append(
            {
                name: float(torch.stack(list(one.sum_squares)).mean()) / one.tokens
                for name, one in sums.items()
                if one.tokens
            }
        )
        if walk.blocks_left == 1:
            return found
        walk.advance(prune_on(walk, sums, pruner, BlockSpec(sparsity, Pattern(), "row")))
    return found


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_real_texts_of_a_trained_model_stay_below_and_ten_times_as_much_does_not(sparsity):
    model = whole_model()
    most = most_mean_squares(model)
    for samples in samples_of(3):
        for block, found in enumerate(means(model, samples, sparsity)):
            assert set(found) == set(most[block])
            assert all(found[name] <= most[block][name] for name in found)
            assert 10 * found["mlp.gate_proj"] > most[block]["mlp.gate_proj"]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "falcon", "mixtral", "gpt_oss"])
def test_any_decoder(family):
    model = tiny_model(family)
    most = most_mean_squares(model)
    assert len(most) == len(model.layout.blocks)
    for block, found in enumerate(means(model, token_samples(3, 8), 0.5)):
        assert all(found[name] <= most[block].get(name, float("inf")) for name in found)
