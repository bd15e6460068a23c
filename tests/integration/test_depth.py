"""Blocks are chosen by summed cosines and made up for by summed products, as in one place."""

import json
from fractions import Fraction

import pytest
import torch
from transformers import AutoModelForCausalLM

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.models.loading import load_model
from server_app.job import run_job
from strategies.course import FederatedPruning
from tests.support.grid import LocalGrid
from tests.support.jobs import QUIET, Shuffled, job, opt_folder, samples_of, whole_model

DEPTH = ("strategy=depth", "strategy.timeout=600", "sparsity=0.34")  # two of six blocks


def hidden_states(model, samples):
    """Block -> what enters it, and last what leaves the last one; tokens of all samples."""
    found = []
    for block in model.layout.blocks:

        def note(_module, args, kwargs, output, one=block):
            entered = args[0] if args else kwargs["hidden_states"]
            left = output[0] if isinstance(output, tuple) else output
            seen.append((entered[0].double(), left[0].double()))

        found.append(block.register_forward_hook(note, with_kwargs=True))
    states = []
    for sample in samples:
        seen = []
        with torch.no_grad():
            model.model(input_ids=sample[None], use_cache=False)
        states.append([entered for entered, _ in seen] + [seen[-1][1]])
    for handle in found:
        handle.remove()
    return [torch.cat(parts) for parts in zip(*states, strict=True)]


def influence(states, first, last):
    """One minus the mean cosine, token by token."""
    total = Fraction(0)
    for before, after in zip(states[first], states[last + 1], strict=True):
        cosine = float(before @ after / (before.norm() * after.norm()))
        total += Fraction(round(cosine * 2**32), 2**32)
    return 1 - float(total / len(states[first]))


@pytest.mark.parametrize("contiguous", [True, False])
def test_the_choice_is_that_of_a_loop_over_all_tokens_for_any_split(tmp_path, contiguous):
    options = (*DEPTH, f"strategy.contiguous={str(contiguous).lower()}", "strategy.repair=false")
    options = (*options, "data.partition=iid")
    three = job(tmp_path / "three", *options, grid=Shuffled(app, 3))
    told = three["strategy"]["removed_blocks"]
    samples = [one for own in samples_of(3, *options) for one in own]
    states = hidden_states(whole_model(), samples)
    single = [influence(states, block, block) for block in range(6)]
    assert told["influence"] == pytest.approx(single, abs=1e-6)
    if contiguous:
        rows = [influence(states, block, block + 1) for block in range(5)]
        assert told["distances"] == pytest.approx(rows, abs=1e-6)
        start = rows.index(min(rows))
        assert told["blocks"] == [start, start + 1]
    else:
        assert told["blocks"] == sorted(sorted(range(6), key=single.__getitem__)[:2])
    again = job(tmp_path / "again", *options, grid=Shuffled(app, 3, seed=5))
    assert again["strategy"]["removed_blocks"] == told


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_map_is_that_of_least_squares_on_all_tokens(tmp_path, family):
    model = (f"model={opt_folder(tmp_path / 'opt')}",) if family == "opt" else ()
    cut, linear = ("2", "fc2") if family == "opt" else ("3,4", "mlp.down_proj")
    options = (*DEPTH, *model, f"strategy.blocks='{cut}'", "strategy.damping=1e-9")
    options = (*options, "pruner.num_calibration_samples=4", "data.partition=iid")
    results = job(tmp_path / "run", *options, grid=Shuffled(app, 3))
    dense = whole_model(*model)
    first, last = int(cut[0]), int(cut[-1])
    written = []
    matrix = dict(dense.layout.blocks[first - 1].named_modules())[linear]
    handle = matrix.register_forward_hook(lambda _m, _a, out: written.append(out.flatten(0, -2)))
    samples = [one for own in samples_of(3, *options) for one in own]
    states = hidden_states(dense, samples)
    handle.remove()
    outputs = torch.cat(written).double()
    target = outputs + states[last + 1] - states[first]  # m + L - h, that is L - Y
    expected = torch.linalg.lstsq(outputs, target, driver="gelsd").solution
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    blocks = found.model.decoder.layers if family == "opt" else found.model.layers
    new = dict(blocks[first - 1].named_modules())[linear]
    weight = expected.T @ matrix.weight.double()
    torch.testing.assert_close(new.weight.double(), weight, rtol=2e-3, atol=2e-3)
    if matrix.bias is not None:
        bias = expected.T @ matrix.bias.double()
        torch.testing.assert_close(new.bias.double(), bias, rtol=2e-3, atol=2e-3)
    left = (outputs @ expected - target).square().sum()
    explained = 1 - float(left / (target - outputs).square().sum())
    (told,) = results["strategy"]["stand_ins"].values()
    assert told == pytest.approx(explained, abs=1e-3)


def test_two_passes_end_with_a_folder_of_fewer_blocks(tmp_path):
    grid = LocalGrid(app, 2)
    results = job(tmp_path / "run", *DEPTH, grid=grid)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert 0 not in results["strategy"]["removed_blocks"]["blocks"]
    up = {e["phase"]: e["bytes_up"] for e in results["ledger"]["entries"]}
    assert up["survey"] < 6000
    assert 80_000 < up["prune"] < 110_000  # of 98,560 before they are packed
    folder = tmp_path / "run" / "model"
    loaded = load_model(config_from_overrides([f"model={folder}"]).model)
    assert len(loaded.layout.blocks) == 4
    assert results["smaller"]["summary"].startswith("2 of 6 blocks removed")
    (repaired,) = results["perplexity"].values()
    (plain,) = job(tmp_path / "plain", *DEPTH, "strategy.repair=false")["perplexity"].values()
    assert plain["dense"] == repaired["dense"] and plain["pruned"] != repaired["pruned"]


def test_blocks_here_and_there_with_a_map_for_each(tmp_path):
    results = job(tmp_path / "run", *DEPTH, "strategy.blocks='1,4'")
    assert set(results["strategy"]["stand_ins"]) == {
        "model.layers.0.mlp.down_proj",
        "model.layers.3.mlp.down_proj",
    }
    assert all(0 < share < 1 for share in results["strategy"]["stand_ins"].values())


def test_a_run_that_was_killed_after_the_survey_goes_on(tmp_path, monkeypatch):
    whole = job(tmp_path / "whole", *DEPTH)
    with monkeypatch.context() as patch:

        def killed(*_args, **_more):
            raise KeyboardInterrupt

        patch.setattr(FederatedPruning, "_rounds", killed)
        with pytest.raises(KeyboardInterrupt):
            job(tmp_path / "run", *DEPTH)
    options = {"overrides": f"resume={tmp_path / 'run'}"}
    run_job(LocalGrid(app, 3), options, 12)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["strategy"] == whole["strategy"]
    assert results["perplexity"] == whole["perplexity"]


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        (("sparsity=0.1",), ConfigError, r"removes none of the model's 6 blocks.*remove=1"),
        (("strategy.remove=6",), ConfigError, "at most 5 .* the first block stays"),
        (("strategy.remove=6", "strategy.repair=false"), ConfigError, "at most 5 .* one must"),
        (("strategy.blocks='9'",), ConfigError, "among 0 to 5, got 9"),
        (("strategy.blocks='0,1'",), ConfigError, "must not name block 0"),
        (("strategy.blocks='1,1'",), ConfigError, "must name every block once"),
        (("strategy.blocks='1'", "strategy.remove=2"), ConfigError, "number of `strategy.blocks`"),
        (("schedule=iterative",), ConfigError, "schedule=one_shot"),
    ],
)
def test_what_cannot_be_is_refused_before_anybody_is_asked(tmp_path, options, error, why):
    grid = LocalGrid(app, 2)
    with pytest.raises(error, match=why):
        job(tmp_path / "run", *DEPTH, *options, grid=grid)
    assert not grid.sent


def test_collected_cosines_are_enough_to_remove_blocks_without_a_map(tmp_path):
    folder = tmp_path / "collected"
    job(folder, "strategy=collect", "strategy.statistics=cosines", "strategy.timeout=600")
    found = StatisticsFolder.open(folder)
    plain = ("strategy.contiguous=false", "strategy.repair=false")
    options = " ".join([*QUIET, *DEPTH, *plain])
    run_job(found, {"overrides": options, "output-dir": str(tmp_path / "solved")}, 12)
    solved = json.loads((tmp_path / "solved" / "results.json").read_text())
    federated = job(tmp_path / "run", *DEPTH, *plain)
    assert solved["strategy"]["removed_blocks"] == federated["strategy"]["removed_blocks"]
    assert solved["perplexity"] == federated["perplexity"]
    options = " ".join([*QUIET, *DEPTH, "strategy.repair=false"])
    with pytest.raises(ConfigError, match="`strategy.contiguous` needs cosines over blocks in a"):
        run_job(found, {"overrides": options, "output-dir": str(tmp_path / "row")}, 12)
