"""Quantised federatedly: as if all texts lay in one place, and so when the folder is loaded."""

import json

import numpy as np
import pytest
import torch

import fedprune
from client_app.app import app
from fedprune.cli import evaluate, main
from fedprune.cli.evaluate import measure
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError, ModelError
from fedprune.models.loading import load_model
from tests.support.grid import LocalGrid
from tests.support.jobs import QUIET, Shuffled, central, job, weights_in
from tests.support.measuring import measure_quickly

SMALL = "pruner.group_size=32"
ROUNDING = ("strategy=fedstats", "pruner=rounding", SMALL)
GPTQ = ("strategy=fedhessian", "pruner=gptq", SMALL)
JOINT = ("strategy=fedhessian", "pruner=sparsegpt", "pruner.bits=4", SMALL, "sparsity=0.5")
ITERATIVE = "schedule=iterative"


def made_by(folder):
    """Return (block, linear) -> weight of the exported folder, as compressed-tensors reads it."""
    config = config_from_overrides([f"model={folder / 'model'}"]).model
    return weights_in(load_model(config, quantized=True))


def same_weights(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in found
    )


pytest.importorskip("compressed_tensors")


@pytest.mark.parametrize("downlink", ["sums", "masks"])
def test_rounding_is_that_of_all_texts_in_one_place_bit_for_bit(tmp_path, downlink):
    options = (*ROUNDING, ITERATIVE, "pruner.symmetric=false")
    job(tmp_path / "run", *options, f"strategy.downlink={downlink}", grid=Shuffled(app, 3))
    expected = {key: change.dense() for key, change in central(3, *options).items()}
    assert same_weights(made_by(tmp_path / "run"), expected)


@pytest.mark.parametrize("options", [GPTQ, JOINT], ids=["gptq", "joint"])
def test_solvers_are_those_of_all_texts_in_one_place_but_for_rounding(tmp_path, options):
    results = job(tmp_path / "run", *options, ITERATIVE, grid=Shuffled(app, 3))
    expected, found = central(3, *options, ITERATIVE), made_by(tmp_path / "run")
    # Moments are sums of float32 in another order: a code on the edge may fall to the other side.
    first = [key for key in expected if key[0] == 0]
    # The last bits of a float32 scale are of the moments', too; another code is a step of a tenth.
    pairs = [(found[key], expected[key].dense()) for key in first]
    differing = [(~torch.isclose(a, b, rtol=1e-3, atol=0)).float().mean() for a, b in pairs]
    assert np.mean(differing) < 1e-3
    errors = [float((a - b).norm() / b.norm()) for a, b in pairs]
    assert np.mean(errors) < 0.02
    sparsity = 0.5 if options is JOINT else 0
    assert results["sparsity"]["overall"] == pytest.approx(sparsity, abs=1e-3)


@pytest.mark.parametrize("options", [GPTQ, JOINT], ids=["gptq", "joint"])
def test_the_folder_is_worth_what_the_run_measured(tmp_path, options):
    results = job(tmp_path / "run", *options, "schedule.prefix=dense", clients=2)
    (label,) = results["perplexity"]
    simulated = results["perplexity"][label]["pruned"]
    config = config_from_overrides([*QUIET, f"model={tmp_path / 'run' / 'model'}"])
    found = measure(tmp_path / "run" / "model", config)
    assert found.perplexities[label].perplexity == pytest.approx(simulated, rel=1e-6)
    assert results["sizes"]["dense"] < 0.62 * results["sizes"]["base"]  # with its embeddings
    assert "masks" not in results["sizes"]


def test_speed_and_agreement_of_a_quantised_folder(tmp_path, capsys, monkeypatch):
    measure_quickly(monkeypatch, evaluate)
    job(tmp_path / "run", *ROUNDING, clients=2)
    short = ["evaluation.max_windows=2", "evaluation.seq_len=32"]
    several = ["evaluate", "demo", str(tmp_path / "run"), *short, "--speed", "--json"]
    assert main(several) == 0
    found = json.loads(capsys.readouterr().out)
    dense, made = found["models"]
    assert made["sizes"]["dense"] < dense["sizes"]["dense"]
    ((one,), (two,)) = (list(model["perplexity"].values()) for model in (dense, made))
    assert 0 < two["kl"] < 0.5 and 0.5 < two["top1"] < 1
    assert one["perplexity"] != two["perplexity"]
    first, second = found["speed"]
    assert first["prompt_ratio"] == 1
    for figure in ("prompt", "generation", "prompt_ratio", "generation_ratio", "peak_bytes"):
        assert second[figure] > 0
    assert main(["evaluate", str(tmp_path / "run"), *short, "--speed"]) == 1
    assert "beside the dense model: fedprune evaluate DENSE" in capsys.readouterr().err


def test_a_narrower_model_is_quantised_by_a_collection_of_its_own(tmp_path, capsys):
    inline = ["federation.backend=inline", "federation.num_clients=2", *QUIET]
    kinds = "strategy.statistics='columns,moments'"
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["collect", *inline, kinds, f"output_dir={first}"]) == 0
    structured = ["pruner=structured", "sparsity=0.25", f"output_dir={tmp_path / 'narrow'}"]
    assert main(["solve", str(first), *structured]) == 0
    narrow = f"model={tmp_path / 'narrow' / 'model'}"
    four_bits = ["pruner=gptq", "pruner.group_size=null"]  # 264 columns
    # What the dense model's inputs were says nothing of columns that are other ones now.
    assert main(["solve", str(first), narrow, *four_bits, f"output_dir={tmp_path / 'no'}"]) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert "are of another model" in told and "collect statistics of this one" in told
    assert main(["collect", narrow, *inline, kinds, f"output_dir={second}"]) == 0
    made = tmp_path / "both"
    assert main(["solve", str(second), *four_bits, f"output_dir={made}"]) == 0
    assert main(["verify", str(made), str(second)]) == 0
    sizes = [
        json.loads((tmp_path / name / "results.json").read_text())["sizes"]["dense"]
        for name in ("narrow", "both")
    ]
    assert sizes[1] < 0.62 * sizes[0]


def test_inputs_of_which_only_sums_are_known_are_rounded(tmp_path):
    job(tmp_path / "run", *GPTQ, "schedule.prefix=dense", "strategy.max_width=200", clients=2)
    exact = ("strategy=fedstats", "pruner=rounding", SMALL, "schedule.prefix=dense")
    job(tmp_path / "rounded", *exact, clients=2)
    found, rounded = made_by(tmp_path / "run"), made_by(tmp_path / "rounded")
    wide = [key for key in found if found[key].shape[1] > 200]
    assert wide and all(torch.equal(found[key], rounded[key]) for key in wide)
    assert not any(torch.equal(found[key], rounded[key]) for key in found if key not in wide)


def test_groups_that_do_not_divide_a_row_stop_a_run_before_anybody_is_asked(tmp_path):
    grid = LocalGrid(app, 2)
    with pytest.raises(ModelError, match=r"mlp.down_proj.*128 does not divide its 352 inputs"):
        job(tmp_path / "run", *GPTQ, "pruner.group_size=128", grid=grid)
    assert not [m for m in grid.sent if m.metadata.message_type.startswith("train")]


def test_one_client_without_flower():
    texts = ["Return the absolute path of a file, or None if there is no such file. " * 9]
    for pruner in ("gptq", "rounding"):
        changes = fedprune.prune_locally(
            "demo", texts, pruner=pruner, overrides=[SMALL, "pruner.bits=8"]
        )
        weight = load_model(config_from_overrides([]).model).weight(0, "self_attn.q_proj")
        found = changes[0]["self_attn.q_proj"]
        assert found.bits == 8 and found.mask.sparsity == 0
        assert (found.dense().float() - weight.float()).norm() < 0.02 * weight.float().norm()
    with pytest.raises(ConfigError, match="`sparsity` must be 0"):
        fedprune.prune_locally("demo", texts, sparsity=0.5, pruner="gptq")
    assert isinstance(found.scales, torch.Tensor)
