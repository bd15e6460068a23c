"""Gradients found block by block against plain autograd over the whole model."""

import pytest
import torch
from torch.nn import functional

from fedprune.config import config_from_overrides
from fedprune.errors import ModelError
from fedprune.models.backward import run_backward
from fedprune.models.loading import load_model
from fedprune.models.writing import write_texts
from fedprune.pruning.output_gradients import mean_squares, output_statistics, own_texts
from fedprune.pruning.statistics import get_kind
from tests.support.jobs import opt_folder, whole_model
from tests.support.mixtures import mixture_folder

FEW = ("allocation.texts=3", "pruner.seq_len=8")


def model_of(family, folder):
    if family == "opt":
        return (f"model={opt_folder(folder / 'opt')}",)
    return ()


def oracle(overrides, texts):
    """Return (block, linear) -> gradients at its outputs, (tokens, d_out), by one graph."""
    whole, seen = whole_model(*overrides), {}
    for block in range(len(whole.layout.blocks)):
        for name, linear in whole.layout.linears(block).items():

            def hook(_module, _args, output, key=(block, name)):
                output.register_hook(
                    lambda g: seen.setdefault(key, []).append(g.reshape(-1, g.shape[-1]))
                )

            linear.module.register_forward_hook(hook)
    for text in texts:
        logits = whole.model(text[None]).logits[0, :-1]
        functional.cross_entropy(logits, text[1:], reduction="sum").backward()
    return {key: torch.cat(parts) for key, parts in seen.items()}


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_they_are_those_of_autograd_over_the_whole_model(tmp_path, family):
    overrides = (*FEW, *model_of(family, tmp_path))
    config = config_from_overrides([*overrides])
    loaded = load_model(config.model)
    texts = own_texts(config, loaded)
    expected = oracle(overrides[2:], texts)
    moments = {}
    output_statistics(config, loaded, get_kind("moments"), lambda b, s: moments.update({b: s}))
    minded = mean_squares(config, loaded)
    assert len(expected) == sum(map(len, loaded.layout.shapes()))
    for (block, name), gradients in expected.items():
        assert minded[block][name] == pytest.approx(float(gradients.square().mean()), rel=1e-4)
        found = moments[block][name]
        assert found.tokens == len(gradients) == 3 * 8
        torch.testing.assert_close(
            found.moments,
            gradients.T @ gradients,
            rtol=1e-3,
            atol=1e-6 * float(found.moments.max()),
        )


def test_only_one_blocks_graph_is_held_at_a_time():
    config = config_from_overrides([*FEW])
    loaded, order = load_model(config.model), []
    running = []

    class Watch:
        def __init__(self, block):
            self.block = block

        def __enter__(self):
            assert not running
            running.append(self.block)

        def __exit__(self, *_):
            order.append(running.pop())

    run_backward(loaded, list(write_texts(loaded, 1, 4, 0)), Watch)
    assert order == [5, 4, 3, 2, 1, 0]


def test_every_pass_is_told_once():
    config = config_from_overrides([*FEW])
    loaded = load_model(config.model)
    told, blocks = [], len(loaded.layout.blocks)
    mean_squares(config, loaded, lambda *step: told.append(step))
    # The first token is given, not written.
    total = config.pruner.seq_len + blocks
    assert told == [(step, total) for step in range(2, total + 1)]
    told.clear()
    mean_squares(config, loaded, lambda *step: told.append(step))
    assert told == [(step, total) for step in range(total - blocks + 1, total + 1)]


def test_texts_follow_from_the_seed_alone():
    loaded = load_model(config_from_overrides([]).model)
    first = write_texts(loaded, 4, 12, 7)
    assert first.shape == (4, 12) and first.dtype == torch.int64
    torch.manual_seed(99)
    assert torch.equal(first, write_texts(loaded, 4, 12, 7))
    assert not torch.equal(first, write_texts(loaded, 4, 12, 8))
    begin = loaded.tokenizer.bos_token_id
    begin = loaded.tokenizer.eos_token_id if begin is None else begin
    assert (first[:, 0] == begin).all()


def test_what_is_drawn_is_likely_to_the_model():
    loaded = load_model(config_from_overrides([]).model)
    whole = whole_model()
    texts = write_texts(loaded, 16, 24, 0)
    random = torch.randint(int(whole.model.config.vocab_size), texts.shape)
    with torch.no_grad():
        nlls = [
            functional.cross_entropy(
                whole.model(x).logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()
            )
            for x in (texts, random)
        ]
    assert nlls[0] < nlls[1] - 2


def test_experts_that_no_token_reached_count_nothing(tmp_path):
    config = config_from_overrides([*FEW, f"model={mixture_folder(tmp_path / 'moe')}"])
    loaded = load_model(config.model)
    found = mean_squares(config, loaded)
    linears = loaded.layout.linears(0)
    experts = {name for name, linear in linears.items() if linear.expert}
    assert experts and set(found[0]) == set(linears)
    assert any(found[0][name] > 0 for name in experts)
    assert all(found[0][name] > 0 for name in set(linears) - experts)


def test_a_model_of_nan_writes_nothing():
    loaded = whole_model()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="can write no text"):
        write_texts(loaded, 2, 4, 0)
