import pytest
import torch

from fedprune.errors import ModelError
from fedprune.models.finetune import keep_zeros
from fedprune.wire.masks import BitMask
from tests.support.architectures import tiny_model, token_samples
from tests.support.masks import random_masks


def step(model, optimizer, tokens):
    optimizer.zero_grad()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ],
)
def test_training_lowers_the_loss_and_keeps_every_zero(family, optimizer):
    loaded = tiny_model(family)
    masks, model = random_masks(loaded), loaded.model
    keep_zeros(model, masks)
    chosen = optimizer(model.parameters())
    tokens = torch.stack(token_samples(4, 16))
    losses = [step(model, chosen, tokens) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.1
    for block, named in masks.items():
        for name, mask in named.items():
            kept = torch.from_numpy(mask.to_bool())
            weight = loaded.weight(block, name)
            assert not weight[~kept].any()
            assert weight[kept].all()


def test_a_removed_handle_lets_zeros_go():
    loaded = tiny_model()
    for handle in keep_zeros(loaded.model, random_masks(loaded)):
        handle.remove()
    chosen = torch.optim.SGD(loaded.model.parameters(), lr=0.1)
    step(loaded.model, chosen, torch.stack(token_samples(4, 16)))
    assert all(loaded.weight(0, name).count_nonzero() for name in ("mlp.up_proj",))
    assert (loaded.weight(0, "mlp.up_proj") != 0).float().mean() > 0.9


def test_frozen_weights_are_pruned_and_have_no_handle():
    loaded = tiny_model()
    loaded.model.requires_grad_(False)
    masks = random_masks(loaded)
    assert keep_zeros(loaded.model, masks) == []
    kept = torch.from_numpy(masks[0]["mlp.up_proj"].to_bool())
    assert not loaded.weight(0, "mlp.up_proj")[~kept].any()


@pytest.mark.parametrize(
    ("block", "name", "shape", "message"),
    [
        (9, "mlp.up_proj", (48, 32), "mask for block 9"),
        (0, "mlp.other", (48, 32), "mlp.other"),
        (0, "mlp.up_proj", (32, 48), "has shape"),
    ],
)
def test_masks_of_another_model_are_refused(block, name, shape, message):
    mask = BitMask.from_bool(torch.ones(shape, dtype=torch.bool).numpy())
    with pytest.raises(ModelError, match=message):
        keep_zeros(tiny_model().model, {block: {name: mask}})
