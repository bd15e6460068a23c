import numpy as np
import pytest
import torch

from fedprune.errors import ModelError
from fedprune.models.changes import Recalled, changed_tensors
from fedprune.wire.changes import FLOATS, LinearUpdate, SparseWeight
from fedprune.wire.masks import BitMask
from tests.support.architectures import MIXTURES, tiny_model
from tests.support.masks import equal_bits, expected_state, random_masks, state_of


def changed_weight(loaded, block, name, change):
    """One linear's parameter after its change, as it is stored."""
    tensors = loaded.block_tensors(block)
    key = loaded.layout.linears(block)[name].key
    return changed_tensors(loaded.layout, block, tensors, {name: change})[key]


def changed_state(loaded, changes):
    """The whole state after the changes, block by block."""
    state = state_of(loaded)
    for block, named in changes.items():
        prefix = f"{loaded.layout.prefix}.{block}."
        made = changed_tensors(loaded.layout, block, loaded.block_tensors(block), named)
        state |= {prefix + name: tensor for name, tensor in made.items() if prefix + name in state}
    return state


@pytest.mark.parametrize("family", ["llama", "gpt2", *MIXTURES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_zero_exactly_the_pruned_weights_of_a_copy(family, dtype):
    loaded = tiny_model(family, dtype)
    first = next(iter(loaded.layout.linears(0)))
    loaded.weight(0, first)[0, :2] = torch.tensor([float("nan"), -0.0])
    masks, before = random_masks(loaded), state_of(loaded)
    assert equal_bits(changed_state(loaded, masks), expected_state(loaded, masks))
    assert equal_bits(state_of(loaded), before)


def test_recalled_changes_are_asked_for_each_time():
    asked = []
    changes = Recalled(range(2, 4), lambda block: asked.append(block) or {})
    assert list(changes) == [2, 3] and len(changes) == 2 and asked == []
    assert 2 in changes and 1 not in changes and asked == []
    assert changes.get(1) is None and changes[3] == {} and changes[3] == {}
    assert asked == [3, 3]


def random_updates(loaded, total=5):
    draw = np.random.default_rng(3)
    return {
        block: {
            name: LinearUpdate(
                mask, draw.integers(0, total, mask.survivors, endpoint=True, dtype=np.uint32), total
            )
            for name, mask in named.items()
        }
        for block, named in random_masks(loaded).items()
    }


def scaled_state(loaded, updates):
    """Survivors times keeps / total in float32, rounded once; one entry after another."""
    state = state_of(loaded)
    for block, named in updates.items():
        for name, update in named.items():
            stored = state[f"{loaded.layout.prefix}.{block}.{name}.weight"]
            weight = stored.T if loaded.layout.linears(block)[name].transposed else stored
            keeps = iter(update.keeps.tolist())
            for place in np.ndindex(*update.shape):
                if update.mask.to_bool()[place]:
                    factor = torch.tensor(next(keeps) / update.total, dtype=torch.float32)
                    weight[place] = (weight[place].float() * factor).to(stored.dtype)
                else:
                    weight[place] = 0
    return state


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_survivors_keep_their_dtype(family, dtype):
    loaded = tiny_model(family, dtype)
    updates, before = {1: random_updates(loaded)[1]}, state_of(loaded)
    name = next(iter(updates[1]))
    gone = np.argwhere(~updates[1][name].mask.to_bool())[0]
    loaded.weight(1, name)[tuple(gone)] = float("nan")
    dense, expected = state_of(loaded), scaled_state(loaded, updates)
    key = f"{loaded.layout.prefix}.1.{name}.weight"
    made = changed_weight(loaded, 1, name, updates[1][name])
    assert equal_bits({key: made}, {key: expected[key]})
    assert equal_bits(changed_state(loaded, updates), expected)
    assert equal_bits(state_of(loaded), dense) and not equal_bits(dense, before)


def new_weights(loaded, dtype):
    draw = torch.Generator().manual_seed(4)
    return {
        block: {
            name: SparseWeight.from_dense(torch.randn(mask.shape, generator=draw).to(dtype), mask)
            for name, mask in named.items()
        }
        for block, named in random_masks(loaded).items()
    }


def replaced_state(loaded, changes):
    """Values put in one after another, rounded to the weight's dtype; zeros elsewhere."""
    state = state_of(loaded)
    for block, named in changes.items():
        for name, change in named.items():
            stored = state[f"{loaded.layout.prefix}.{block}.{name}.weight"]
            weight = stored.T if loaded.layout.linears(block)[name].transposed else stored
            weight.zero_()
            places = np.argwhere(change.mask.to_bool())
            for place, value in zip(places, change.values, strict=True):
                weight[tuple(place)] = value.to(stored.dtype)
    return state


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sent", FLOATS)
def test_new_values_take_the_survivors_place(family, dtype, sent):
    loaded = tiny_model(family, dtype)
    changes = {0: new_weights(loaded, sent)[0], 1: random_updates(loaded)[1]}
    name, change = next(iter(changes[0].items()))
    loaded.weight(0, name)[0, :2] = torch.tensor([float("nan"), -0.0])
    dense = state_of(loaded)
    expected = replaced_state(loaded, {0: changes[0]}) | {
        key: tensor
        for key, tensor in scaled_state(loaded, {1: changes[1]}).items()
        if f"{loaded.layout.prefix}.1." in key
    }
    key = f"{loaded.layout.prefix}.0.{name}.weight"
    made = changed_weight(loaded, 0, name, change)
    assert made.is_contiguous() and made.dtype == dtype
    assert equal_bits({key: made}, {key: expected[key]})
    assert equal_bits(changed_state(loaded, changes), expected)
    assert equal_bits(state_of(loaded), dense)


def test_an_update_without_counts_is_its_mask():
    loaded = tiny_model()
    masks = random_masks(loaded)
    plain = {
        b: {n: LinearUpdate(m, None, 3) for n, m in named.items()} for b, named in masks.items()
    }
    assert equal_bits(changed_state(loaded, plain), expected_state(loaded, masks))


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
    packed = {b: {n: BitMask.from_bool(m) for n, m in named.items()} for b, named in masks.items()}
    ((block, named),) = packed.items()
    tensors = loaded.block_tensors(0)
    with pytest.raises(ModelError, match=message):
        changed_tensors(loaded.layout, block, tensors, named)
    assert equal_bits(state_of(loaded), before)
