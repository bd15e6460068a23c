"""Architectures that cannot be walked block by block must say so, not give wrong masks."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

from fedprune.errors import ModelError
from fedprune.models.capture import capture_inputs, hidden_of
from fedprune.models.carried import Carried
from fedprune.models.layout import find_layout
from fedprune.models.loading import LoadedModel
from fedprune.models.sources import HeldWeights
from fedprune.models.walk import ModelWalk
from tests.support.architectures import token_samples


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states, extra=None):
        return hidden_states + self.linear(hidden_states)


class Decoder(nn.Module):
    """A decoder of a few blocks whose forward pass is given by a function."""

    kind = Block

    def __init__(self, run, blocks=2):
        super().__init__()
        self.run, self.config = run, PreTrainedConfig()
        self.embed = nn.Embedding(100, 8)
        self.layers = nn.ModuleList([self.kind() for _ in range(blocks)])

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


def walked(run, blocks, count=2):
    """Return what the blocks make of samples one block at a time, and what the model makes."""
    model = Decoder(run, blocks)
    loaded = LoadedModel(model, None, find_layout(model), "", HeldWeights(model))
    samples = token_samples(count, 6)
    walk = ModelWalk(loaded, samples)
    while walk.blocks_left:
        # As in a deployment, where each block is another process.
        hidden = [state.clone() for state in walk.hidden]
        if walk.position:
            walk = ModelWalk(loaded, samples, hidden=hidden, start=walk.position)
        walk.advance({})
    plain = loaded.layout.passage.plain
    last = [one if plain else hidden_of(Carried.unpack(one).output) for one in walk.hidden]
    with torch.no_grad():
        return plain, last, [model(sample[None], use_cache=False) for sample in samples]


class Sharing(Block):
    """Adds the first block's output, which that leaves in a mapping."""

    def forward(self, hidden_states, states=None):
        made = super().forward(hidden_states)
        if "first" in states:
            return made + states["first"]
        states["first"] = made.clone()
        return made


class Counting(Block):
    """Returns how many numbers were positive, which the next block needs."""

    def forward(self, hidden_states, counts=None):
        made = super().forward(hidden_states)
        return made if counts is None else made + counts, (made > 0).sum(-1, keepdim=True)


def shared(layers, hidden):
    states = {}
    for layer in layers:
        hidden = layer(hidden, states=states)
    return hidden


def counted(layers, hidden):
    counts = None
    for layer in layers:
        hidden, counts = layer(hidden, counts=counts)
    return hidden


def skipping(layers, hidden):
    return layers[2](layers[0](hidden))


@pytest.mark.parametrize(
    ("run", "kind", "plain"),
    [
        (chain, Block, True),
        (lambda layers, hidden: layers[1](2 * layers[0](hidden)), Block, False),
        (lambda layers, hidden: layers[1](layers[0](hidden, {}), {"a": hidden}), Block, True),
        (lambda layers, hidden: layers[1](layers[0](hidden, [1])), Block, True),
        (skipping, Block, True),
        (shared, Sharing, False),
        (counted, Counting, False),
    ],
    ids=["chain", "scaled", "mapping", "list", "skipped", "shared", "counted"],
)
def test_blocks_one_by_one_make_what_the_model_makes(monkeypatch, run, kind, plain):
    monkeypatch.setattr(Decoder, "kind", kind)
    found, last, expected = walked(run, blocks=3 if run is skipping else 2)
    assert found is plain
    assert all(map(torch.equal, last, expected))


def earlier(layers, hidden):
    """Give the last block the sum of what all before it returned."""
    one = layers[0](hidden)
    two = layers[1](one)
    return layers[2](one + two)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda layers, hidden: chain(layers, chain(layers, hidden)), "`layers.0` more than once"),
        (lambda layers, hidden: layers[0](layers[1](hidden)), "not in the order of the list"),
        (lambda layers, hidden: layers[0](layers[0](hidden)), "`layers.0` more than once"),
        (lambda layers, hidden: hidden, "does not reach `layers`"),
        (lambda layers, hidden: layers[1](layers[0](hidden).missing), "1 of the 2 blocks"),
        (earlier, "`layers.2` needs what earlier blocks"),
    ],
    ids=["looped", "reversed", "repeated", "unused", "failing", "earlier"],
)
def test_refuses_what_does_not_run_block_by_block(run, message):
    with pytest.raises(ModelError, match=message):
        find_layout(Decoder(run, blocks=3 if run is earlier else 2))


def test_linears_that_are_never_called_are_no_linears():
    layout = find_layout(Decoder(lambda layers, hidden: layers[2](layers[0](hidden)), blocks=3))
    assert layout.passage.idle == {"layers.1.linear"}
    assert layout.shapes() == [{"linear": (8, 8)}, {}, {"linear": (8, 8)}]


def test_tiny_tensors_are_traced_in_one_thread():
    found, before = [], torch.get_num_threads()

    def run(layers, hidden):
        found.append(torch.get_num_threads())
        return chain(layers, hidden)

    torch.set_num_threads(3)
    try:
        find_layout(Decoder(run))
        assert set(found) == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_refuses_blocks_that_return_something_else(monkeypatch):
    monkeypatch.setattr(Block, "forward", lambda self, hidden: {"hidden": hidden})
    with pytest.raises(ModelError, match="returned dict, expected its hidden states"):
        capture(chain)


@pytest.mark.parametrize("pack", [lambda h: (h, 1, 2), lambda h: [h, 1]])
def test_blocks_may_return_more_than_hidden_states(monkeypatch, pack):
    monkeypatch.setattr(Block, "forward", lambda self, hidden: pack(self.linear(hidden)))

    def unpack(layers, hidden):
        for layer in layers:
            hidden, *rest = layer(hidden)
            assert len(rest) == len(pack(hidden)) - 1

    assert len(capture(unpack)[0][1]) == 2
