"""A mixture loses the experts that all clients' texts need least, and is a smaller mixture then."""

import numpy as np
import pytest
import torch
import transformers as hf

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.methods.fedexperts.ranking import expert_scores
from fedprune.methods.fedexperts.selection import drop_lowest, grouped
from fedprune.models.embedded import demo_model_path
from fedprune.models.loading import load_model
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.kinds import find_kind
from tests.support.jobs import Shuffled, job, samples_of

EXPERTS, BLOCKS = 8, 3
FEDEXPERTS = ("strategy=fedexperts", "strategy.timeout=60")


def mixture_folder(folder, model_type="mixtral", **more):
    """Write a small mixture of experts with random weights and the demo's tokenizer."""
    sizes = {
        "vocab_size": 1024,
        "hidden_size": 32,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    }
    config = hf.AutoConfig.for_model(model_type, **sizes, **more)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(demo_model_path()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtral") / "model"
    return mixture_folder(folder, num_local_experts=EXPERTS, num_experts_per_tok=2)


def sums_of(model, samples):
    """Return the sums of each block, from one walk over some samples."""
    walk = BlockWalk(load_model(config_from_overrides([f"model={model}"]).model), samples)
    found = []
    while walk.blocks_left:
        found.append(walk.observe((), [find_kind("experts")]).block["experts"])
        walk.advance({}) if walk.blocks_left > 1 else walk.skip()
    return found


def dropped(results):
    return [block["dropped"] for block in results["strategy"]["experts"]["blocks"]]


@pytest.mark.parametrize("clients", [1, 3, 16])
def test_what_goes_is_what_one_machine_with_all_texts_would_drop(tmp_path, mixtral, clients):
    options = (*FEDEXPERTS, f"model={mixtral}", "sparsity=0.25")
    results = job(tmp_path / "run", *options, grid=Shuffled(app, clients, seed=clients))
    pooled = sums_of(mixtral, sum(samples_of(clients, *options), []))
    expected = [drop_lowest(expert_scores(sums, "reap"), grouped(EXPERTS, 1), 2) for sums in pooled]
    assert dropped(results) == expected
    told = [block["tokens"] for block in results["strategy"]["experts"]["blocks"]]
    assert told == [sums["tokens"].tolist() for sums in pooled]


def test_the_model_is_smaller_and_loads_as_it_is(tmp_path, mixtral):
    options = (*FEDEXPERTS, f"model={mixtral}", "sparsity=0.5")
    results = job(tmp_path / "run", *options)
    folder = tmp_path / "run" / "model"
    small, told = hf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert small.config.num_local_experts == EXPERTS // 2
    told = results["smaller"]
    one_expert = 48 * 32 * 3 + 32  # gate, up and down, and a row of the router
    parameters = told["parameters"]
    assert parameters["before"] - parameters["after"] == BLOCKS * EXPERTS // 2 * one_expert
    assert results["sizes"]["dense"] == (folder / "model.safetensors").stat().st_size
    weights = results["sizes"]["base"] - results["sizes"]["dense"]
    assert weights == pytest.approx(4 * BLOCKS * EXPERTS // 2 * one_expert, abs=20_000)
    assert told["summary"] == "4 of 8 experts removed from each of 3 blocks"
    assert told["config"] == {"num_local_experts": EXPERTS // 2}
    assert np.isfinite(results["perplexity"]["stdlib"]["pruned"])
    card = (folder / "README.md").read_text()
    assert "4 of 8 experts removed from each of 3 blocks" in card and "zeros" not in card
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Experts removed" in report and "real zeros" not in report
    dense = hf.AutoModelForCausalLM.from_pretrained(mixtral)
    for block, gone in enumerate(dropped(results)):
        kept = [expert for expert in range(EXPERTS) if expert not in gone]
        for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
            whole = dense.get_parameter(f"model.layers.{block}.mlp.{name}")
            assert torch.equal(small.get_parameter(f"model.layers.{block}.mlp.{name}"), whole[kept])
