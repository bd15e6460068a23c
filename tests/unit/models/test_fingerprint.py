import hashlib

import pytest
import torch

from fedprune.models.fingerprint import config_hash, fingerprint, weights_hash
from tests.support.architectures import tiny_model


def slow_weights_hash(state):
    root = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        shape = tuple(tensor.shape)
        raw = bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())
        root.update(f"{name}\0{tensor.dtype}\0{shape}\0".encode())
        root.update(hashlib.sha256(raw).digest())
    return root.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_hash_equals_its_definition(dtype):
    state = {
        "b": torch.randn(3, 4).to(dtype),
        "a.transposed": torch.randn(5, 2).to(dtype).T,
        "scalar": torch.tensor(2.0, dtype=dtype),
        "count": torch.arange(3),
    }
    expected = slow_weights_hash(state)
    assert weights_hash(state, state.__getitem__) == expected
    assert weights_hash(reversed(state), state.__getitem__) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([[1.0, 2.0, 3.0]])},
        {"b": torch.tensor([1.0, 2.0, 3.0])},
        {"a": torch.tensor([1.0, 2.0, 3.0]).view(torch.int32)},
        {"a": torch.tensor([1.0, 2.0, 3.0 + 2**-20])},
    ],
    ids=["shape", "name", "dtype", "one bit"],
)
def test_weights_hash_tells_apart(other):
    one = {"a": torch.tensor([1.0, 2.0, 3.0])}
    assert weights_hash(other, other.__getitem__) != weights_hash(one, one.__getitem__)


def test_config_hash_ignores_where_and_with_what_a_model_was_loaded():
    config = {"hidden_size": 8, "rope": {"theta": 1.0}, "text_config": {"dtype": "float32"}}
    volatile = {
        "transformers_version": "9",
        "_name_or_path": "/elsewhere",
        "dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "_commit_hash": "abc"},
    }
    assert config_hash(config | volatile) == config_hash(config)
    assert config_hash(config | {"rope": {"theta": 2.0}}) != config_hash(config)


def test_equal_models_have_equal_fingerprints_and_one_weight_changes_them():
    first, second = tiny_model("gemma2"), tiny_model("gemma2")
    second.model.config._name_or_path = "/another/copy"
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        second.model.get_output_embeddings().weight[1, 1] += 1
    changed = fingerprint(second)
    assert changed.config == fingerprint(first).config
    assert changed.weights != fingerprint(first).weights
    assert len(changed.weights) == 64 and changed.transformers
