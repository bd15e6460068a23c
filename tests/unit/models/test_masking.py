import numpy as np
import pytest
import torch

from fedprune.errors import ModelError
from fedprune.models.masking import apply_masks, masked, masked_weight
from fedprune.wire.bitmask import BitMask
from tests.support.architectures import tiny_model
from tests.support.masks import equal_bits, expected_state, random_masks, state_of


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_apply_masks_zeroes_exactly_the_pruned_weights(family):
    loaded = tiny_model(family)
    masks = random_masks(loaded)
    expected = expected_state(loaded, masks)
    apply_masks(loaded, masks)
    assert equal_bits(state_of(loaded), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_restores_every_bit(family, dtype):
    loaded = tiny_model(family, dtype)
    loaded.layout.linears(0)[next(iter(loaded.layout.linears(0)))].weight()[0, :2] = torch.tensor(
        [float("nan"), -0.0]
    )
    masks, before = random_masks(loaded), state_of(loaded)
    expected = expected_state(loaded, masks)
    with masked(loaded, masks):
        assert equal_bits(state_of(loaded), expected)
    assert equal_bits(state_of(loaded), before)


def test_masked_restores_after_an_error():
    loaded = tiny_model()
    before = state_of(loaded)
    with pytest.raises(KeyError), masked(loaded, random_masks(loaded)):
        raise KeyError
    assert equal_bits(state_of(loaded), before)


def test_masked_restores_a_model_that_got_new_storage_meanwhile():
    loaded = tiny_model()
    before = state_of(loaded)
    with masked(loaded, random_masks(loaded)):
        loaded.model.double().float()  # as moving to a device and back does
    assert equal_bits(state_of(loaded), before)


def test_masked_weight_is_a_copy_in_the_stored_orientation():
    loaded = tiny_model("gpt2")
    linear = loaded.layout.linears(0)["mlp.c_fc"]
    keep = np.zeros(linear.shape, dtype=bool)
    keep[3, 4] = True
    before = state_of(loaded)
    made = masked_weight(linear.module.weight, linear, BitMask.from_bool(keep))
    assert made.shape == linear.module.weight.shape
    assert torch.nonzero(made).tolist() == [[4, 3]]
    assert equal_bits(state_of(loaded), before)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({7: {}}, "block 7.*blocks 0 to 2"),
        ({0: {"mlp.gone": np.ones((2, 2), bool)}}, "mlp.gone.*has self_attn.q_proj"),
        ({1: {"mlp.up_proj": np.ones((2, 2), bool)}}, r"shape \(2, 2\), its weight \(48, 32\)"),
    ],
)
def test_masks_of_another_model_change_nothing(masks, message):
    loaded = tiny_model()
    before = state_of(loaded)
    good = {0: random_masks(loaded)[0]}
    packed = {b: {n: BitMask.from_bool(m) for n, m in named.items()} for b, named in masks.items()}
    for attempt in (packed, good | packed):
        with pytest.raises(ModelError, match=message):
            apply_masks(loaded, attempt)
        with pytest.raises(ModelError, match=message), masked(loaded, attempt):
            pass
    assert equal_bits(state_of(loaded), before)
