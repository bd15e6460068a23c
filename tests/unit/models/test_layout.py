from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn

from fedprune.errors import ModelError
from fedprune.models.layout import find_layout
from tests.support.architectures import EXPECTED, FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_blocks_and_linears_of_every_family(family):
    loaded = tiny_model(family)
    prefix, names = EXPECTED[family]
    layout = find_layout(loaded.model)
    assert layout.prefix == prefix
    assert len(layout.blocks) == loaded.model.config.num_hidden_layers
    for index in range(len(layout.blocks)):
        linears = layout.linears(index)
        assert set(linears) == names
        for name, linear in linears.items():
            weight = loaded.weight(index, name)
            stored = linear.module.weight
            assert tuple(weight.shape) == linear.shape
            assert weight.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_linear_maps_its_input_as_its_weight_says(family):
    loaded = tiny_model(family)
    for name, linear in loaded.layout.linears(0).items():
        inputs = torch.randn(1, 3, linear.shape[1])
        with torch.no_grad():
            made = linear.module(inputs) - linear.module(torch.zeros_like(inputs))
        expected = inputs @ loaded.weight(0, name).T
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_refuses_an_encoder_decoder():
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=20, **sizes))
    with pytest.raises(ModelError, match="encoder-decoder"):
        find_layout(model)


def test_refuses_a_model_with_nothing_to_prune():
    model = nn.Sequential(nn.Embedding(4, 4), nn.ModuleList([nn.LayerNorm(4)]), nn.Linear(4, 4))
    with pytest.raises(ModelError, match="nothing to prune"):
        find_layout(model)


class Stack(nn.Module):
    """A decoder that runs some layers one after another."""

    def __init__(self, *layers):
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.embed = nn.Embedding(100, 4)
        self.adapters = nn.ModuleList([nn.Linear(4, 4)])
        self.layers = nn.ModuleList(layers)

    def forward(self, input_ids, use_cache):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def test_blocks_may_be_of_different_classes():
    class Other(nn.Sequential):
        pass

    layout = find_layout(
        Stack(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), Other(nn.Linear(4, 4)))
    )
    assert layout.shapes() == [{"0": (8, 4), "1": (4, 8)}, {"0": (4, 4)}]


def test_shared_weights_stay_dense():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    wide = [nn.Linear(4, 16, bias=False), nn.Linear(16, 4, bias=False)]
    layout = find_layout(Stack(nn.Sequential(first, *wide), nn.Sequential(second)))
    assert layout.shapes() == [{"1": (16, 4), "2": (4, 16)}, {}]
    assert layout.shared == {"layers.0.0", "layers.1.0"}


def test_takes_the_outer_list_not_lists_inside_its_blocks():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, hidden):
            return self.experts[0](hidden)  # nothing is routed to the other

    layout = find_layout(Stack(Block()))
    assert layout.prefix == "layers"
    assert list(layout.linears(0)) == ["experts.0", "experts.1"]


_TOWER = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "image_size": 32,
    "patch_size": 8,
}


def test_a_tower_larger_than_the_text_decoder_is_not_taken_for_the_blocks():
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2}
    text = sizes | {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48}
    git = hf.GitConfig(**text, vision_config=_TOWER)
    gemma = hf.Gemma3Config(text_config=text, vision_config=_TOWER)
    for config, kind, prefix in (
        (git, hf.GitForCausalLM, "git.encoder.layer"),
        (gemma, hf.Gemma3ForConditionalGeneration, "model.language_model.layers"),
    ):
        with torch.device("meta"):
            layout = find_layout(kind(config))
        assert layout.prefix == prefix
        assert len(layout.blocks) == 2
