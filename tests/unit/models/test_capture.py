"""Architectures that cannot be walked block by block must say so, not give wrong masks."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

from fedprune.errors import ModelError
from fedprune.models.capture import capture_inputs
from fedprune.models.layout import find_layout
from fedprune.models.loading import LoadedModel
from fedprune.models.sources import HeldWeights
from tests.support.architectures import token_samples


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states, extra=None):
        return hidden_states + self.linear(hidden_states)


class Decoder(nn.Module):
    """A decoder of two blocks whose forward pass is given by a function."""

    def __init__(self, run):
        super().__init__()
        self.run, self.config = run, PreTrainedConfig()
        self.embed = nn.Embedding(100, 8)
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, input_ids, use_cache):
        return self.run(self.layers, self.embed(input_ids))


def capture(run, count=1):
    model = Decoder(run)
    loaded = LoadedModel(model, None, find_layout(model), "", HeldWeights(model))
    return list(capture_inputs(loaded, [sample[None] for sample in token_samples(count, 6)]))


def chain(layers, hidden):
    return layers[1](layers[0](hidden))


def test_a_plain_chain_is_captured():
    found = capture(chain, count=3)
    assert [tuple(hidden.shape) for hidden, _ in found] == [(1, 6, 8)] * 3
    assert [len(calls) for _, calls in found] == [2, 2, 2]


def test_hidden_states_may_be_passed_by_name():
    def by_name(layers, hidden):
        for layer in layers:
            hidden = layer(extra=torch.ones(2), hidden_states=hidden)

    (_, calls) = capture(by_name)[0]
    call = calls[1]
    hidden, other = torch.zeros(1), torch.ones(3)
    (extra,) = call.tensors()
    args, kwargs = call.bind(hidden, {id(extra): other})
    assert args == () and kwargs == {"hidden_states": hidden, "extra": other}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda layers, hidden: chain(layers, chain(layers, hidden)), "block 0 after 1"),
        (lambda layers, hidden: layers[0](layers[1](hidden)), "block 1 after -1|never called"),
        (lambda layers, hidden: layers[0](hidden), "called 1 of 2"),
        (lambda layers, hidden: layers[0](layers[0](hidden)), "block 0 after 0"),
        (lambda layers, hidden: layers[1](2 * layers[0](hidden)), "1 does not get the output"),
        (lambda layers, hidden: layers[0](hidden, extra={}), "gets a dict as argument `extra`"),
        (lambda layers, hidden: layers[0](hidden, [1]), "gets a list as argument `1`"),
        (lambda layers, hidden: hidden, "never called the first"),
    ],
    ids=["looped", "reversed", "skipped", "repeated", "changed", "dict", "list", "unused"],
)
def test_refuses_what_is_no_plain_chain(run, message):
    with pytest.raises(ModelError, match=f"({message}).*not supported"):
        capture(run)


def test_refuses_blocks_that_return_something_else(monkeypatch):
    monkeypatch.setattr(Block, "forward", lambda self, hidden: {"hidden": hidden})
    with pytest.raises(ModelError, match="returned dict, expected its hidden states"):
        capture(chain)


@pytest.mark.parametrize("pack", [lambda h: (h, 1, 2), lambda h: [h, 1]])
def test_blocks_may_return_more_than_hidden_states(monkeypatch, pack):
    monkeypatch.setattr(Block, "forward", lambda self, hidden: pack(hidden))

    def unpack(layers, hidden):
        for layer in layers:
            hidden, *rest = layer(hidden)
            assert len(rest) == len(pack(hidden)) - 1

    assert len(capture(unpack)[0][1]) == 2
