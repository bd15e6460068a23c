"""Whole units go on summed second moments; what is left is an ordinary narrower model."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.errors import ModelError
from fedprune.evaluation.perplexity import evaluation_windows, perplexities
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.models.loading import load_model
from fedprune.models.reshape import SHARD_BYTES, read_origin
from fedprune.pruning.blocks import BlockWalk, prune_blocks
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.units import find_units
from server_app.job import run_job
from tests.support.jobs import QUIET, Shuffled, job, opt_folder, samples_of, weights_of

pytestmark = pytest.mark.usefixtures("three_blocks")

STRUCTURED = ("strategy=fedhessian", "pruner=structured", "sparsity=0.25", "strategy.timeout=600")


def central(clients, *overrides):
    """The same pruner on one pooled walk: block -> linear -> change; and the model it prunes."""
    config = config_from_overrides([*QUIET, *overrides])
    loaded = load_model(config.model)
    total = len(loaded.layout.blocks)
    samples = [sample for own in samples_of(clients, *overrides) for sample in own]
    walk = BlockWalk(loaded, samples)
    made = prune_blocks(walk, make_pruner(config.pruner), block_specs(config, range(total), total))
    return config, loaded, dict(made)


def kept_columns(mask):
    return np.flatnonzero(mask.to_bool().any(axis=0))


@pytest.mark.parametrize("structure", ["ffn", "heads"])
@pytest.mark.parametrize("repair", [True, False])
def test_iterative_equals_all_texts_in_one_place_and_the_folder_what_was_simulated(
    tmp_path, structure, repair
):
    share = "sparsity=0.5" if structure == "heads" else "sparsity=0.25"
    options = (*STRUCTURED, "schedule=iterative", f"pruner.structure={structure}", share)
    options = (*options, f"pruner.repair={str(repair).lower()}")
    results = job(tmp_path / "run", *options, grid=Shuffled(app, 3))
    config, loaded, changes = central(3, *options)
    units, found = find_units(loaded, structure), weights_of(tmp_path / "run")
    for block, done in changes.items():
        kept = kept_columns(done[units.linear].mask)
        torch.testing.assert_close(
            found[block, units.linear], done[units.linear].dense()[:, kept], rtol=2e-3, atol=2e-4
        )
        for name in units.producers:
            rows = np.flatnonzero(done[name].to_bool().any(axis=1))
            assert torch.equal(found[block, name], loaded.weight(block, name)[rows])
    windows = evaluation_windows(config, loaded.tokenizer)
    simulated = perplexities(loaded, windows, "cpu", changes)
    label = next(iter(windows))
    told = results["perplexity"][label] if label in results["perplexity"] else results["perplexity"]
    assert told["pruned"] == pytest.approx(simulated[label].perplexity, rel=1e-4)


def test_the_folder_is_narrower_and_an_ordinary_one(tmp_path):
    results = job(tmp_path / "run", *STRUCTURED, "schedule.prefix=dense")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["intermediate_size"] == 264  # of 352
    dense = load_model(config_from_overrides([]).model)
    assert read_origin(tmp_path / "run" / "model")["config"] == {"intermediate_size": 264}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    before = sum(one.numel() for one in dense.model.parameters())
    assert before - sum(one.numel() for one in again.parameters()) == 3 * 3 * 128 * 88
    assert results["sizes"]["dense"] < SHARD_BYTES
    assert not (tmp_path / "run" / "model" / "fedprune" / "masks.safetensors").exists()


def test_clients_send_the_moments_of_one_input_only(tmp_path):
    results = job(tmp_path / "run", *STRUCTURED, "schedule.prefix=dense", clients=2)
    up = [e["bytes_up"] for e in results["ledger"]["entries"] if e["phase"] == "prune"]
    triangle = 3 * 4 * 352 * 353 // 2
    assert all(triangle < size < 1.1 * triangle for size in up)


def test_the_demo_on_its_own_pruned_blocks_and_opt_with_biases(tmp_path):
    job(tmp_path / "local", *STRUCTURED, "evaluation.local_only=true", clients=2)
    model = f"model={opt_folder(tmp_path / 'opt')}"
    job(tmp_path / "run", *STRUCTURED, model, "schedule=iterative", clients=2)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert again.config.ffn_dim == 48
    assert again.model.decoder.layers[0].fc1.bias.shape == (48,)


def test_a_collection_is_solved_for_any_width(tmp_path):
    folder = tmp_path / "collected"
    job(folder, "strategy=collect", "strategy.statistics=moments", "strategy.timeout=600")
    job(tmp_path / "run", *STRUCTURED, "schedule.prefix=dense")
    options = " ".join([*QUIET, "strategy=collect", "pruner=structured", "sparsity=0.25"])
    told = {"overrides": options, "output-dir": str(tmp_path / "solved")}
    run_job(StatisticsFolder.open(folder), told, 12)
    expected, found = weights_of(tmp_path / "run"), weights_of(tmp_path / "solved")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("sparsity=0.01",), r"removes none of the 352 units .* Set sparsity=0\.0"),
        (("pruner.multiple=512",), r"Lower `pruner\.multiple`"),
    ],
)
def test_widths_that_cannot_be_are_refused_before_anybody_is_asked(tmp_path, more, why):
    grid = Shuffled(app, 2)
    with pytest.raises(ModelError, match=why):
        job(tmp_path / "run", *STRUCTURED, *more, grid=grid)
    assert not grid.sent
