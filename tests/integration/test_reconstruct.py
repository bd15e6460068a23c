"""Survivors fitted to the dense block after each block is pruned, whatever the method."""

import json

import numpy as np
import pytest
import torch

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.wire.arrays import Arrays, array_names, encode_arrays
from server_app.job import run_job
from tests.support.grid import LocalGrid, answering
from tests.support.jobs import (
    QUIET,
    Shuffled,
    Stopping,
    described,
    job,
    masks_of,
    opt_folder,
    refusals,
    weights_of,
)

ITERATIVE = "schedule=iterative"
METHODS = (
    ("strategy=fedprllm",),
    ("strategy=fedprllm", "strategy.scaling=true"),
    ("strategy=fedstats",),
    ("strategy=fedspallm", "pruner=sparsegpt"),
    ("strategy=fedhessian", "pruner=sparsegpt"),
)
FIT = ("strategy=fedstats", ITERATIVE, "sparsity=0.6", "data.partition=iid")


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return f"model={opt_folder(tmp_path_factory.mktemp('model') / 'opt')}"


def told_of(results: dict) -> list[dict]:
    return results["strategy"]["reconstruct"]


@pytest.mark.parametrize("method", METHODS, ids=" ".join)
def test_every_method_is_followed_by_it(tmp_path, opt, method):
    options = (*method, opt, ITERATIVE, "sparsity=0.6", "data.partition=iid")
    plain = job(tmp_path / "plain", *options, clients=2)
    more = ("reconstruct=fedavg", "reconstruct.exchanges=3")
    fitted = job(tmp_path / "fitted", *options, *more, clients=2)
    described(fitted)
    assert [one["block"] for one in told_of(fitted)] == [0, 1, 2]
    for one in told_of(fitted):
        assert one["losses"][one["kept"]] == min(one["losses"])
        assert len(one["losses"]) == one["exchanges"] <= 4
    assert sum(one["kept"] > 0 for one in told_of(fitted)) >= 2
    first, second = masks_of(tmp_path / "plain"), masks_of(tmp_path / "fitted")
    assert all(np.array_equal(first[key], second[key]) for key in first if key[0] == 0)
    weights = weights_of(tmp_path / "fitted")
    assert all(not weights[key][torch.from_numpy(~second[key])].any() for key in weights)
    assert fitted["sparsity"]["overall"] == plain["sparsity"]["overall"]
    assert not refusals(fitted)
    grown = fitted["ledger"]["bytes_up"] - plain["ledger"]["bytes_up"]
    survivors = round((1 - fitted["sparsity"]["overall"]) * fitted["sparsity"]["weights"])
    steps = sum(min(one["exchanges"], 3) for one in told_of(fitted)) / 3
    assert grown > 2 * survivors * steps * 0.9 * 2  # two bytes, two clients


def test_gradients_make_the_same_model_whoever_holds_the_texts(tmp_path, opt):
    found = []
    for clients in (1, 3):
        results = job(
            tmp_path / str(clients),
            *(
                *FIT,
                opt,
                "reconstruct=fedsgd",
                "reconstruct.exchanges=3",
                "reconstruct.holdout=0.4",
            ),
            *("data.sampling=published", f"pruner.num_calibration_samples={6 // clients}"),
            grid=Shuffled(app, clients),
        )
        found.append((weights_of(tmp_path / str(clients)), told_of(results)))
    (one, first), (three, second) = found
    assert first == second and any(block["kept"] for block in first)
    assert all(torch.equal(one[key], three[key]) for key in one)


@pytest.mark.parametrize("rule", ["fedsgd", "fedavg"])
def test_a_run_killed_between_two_steps_goes_on_to_the_same_model(tmp_path, opt, rule):
    options = (*FIT, opt, f"reconstruct={rule}", "reconstruct.exchanges=2")
    whole = job(tmp_path / "whole", *options)
    folder = tmp_path / "run"
    # Three clients are asked about each block once to prune and up to three times to fit.
    with pytest.raises(KeyboardInterrupt):
        words = {"overrides": " ".join([*QUIET, *options]), "output-dir": str(folder)}
        run_job(Stopping(after=8), words, 1)
    grid = Stopping(after=13)
    with pytest.raises(KeyboardInterrupt):
        run_job(grid, {"overrides": f"resume={folder}"}, 2)
    grid = Stopping()
    run_job(grid, {"overrides": f"resume={folder}"}, 3)
    results = json.loads((folder / "results.json").read_text())
    assert told_of(results) == told_of(whole)
    expected, found = weights_of(tmp_path / "whole"), weights_of(folder)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert not grid.kept()


def rewritten(losses: bool, change):
    """Return what changes the losses in an answer, or all else."""

    def changed(data: bytes) -> bytes:
        names = array_names(data)
        arrays = Arrays(data, names)
        found = {name: arrays.take(name, arrays.announced(name)).copy() for name in names}
        arrays.finish()
        chosen = {name: change(found[name]) for name in names if (name == "losses") == losses}
        return encode_arrays(found | chosen)

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rewritten(False, lambda one: np.full_like(one, 2**62)), "than 96 tokens can make it"),
        (rewritten(False, lambda one: np.full(one.shape, np.nan)), "int64"),
        (rewritten(True, lambda one: one + np.array([2**60, 0, 0, 0])), "a loss must be from 0"),
        (rewritten(True, lambda one: one * np.array([1, 1000, 1, 1])), "it promised 96"),
        (lambda data: data[:-9], ""),
    ],
    ids=["too large", "NaN", "loss", "tokens", "cut off"],
)
def test_a_false_step_is_refused_by_name_and_the_block_goes_on(tmp_path, opt, change, words):
    grid = LocalGrid(app, 3, tamper=answering(change, form="reconstruct"))
    more = ("reconstruct=fedsgd", "reconstruct.exchanges=2", "reconstruct.holdout=0")
    results = job(tmp_path / "run", *FIT, opt, *more, grid=grid)
    (name,) = refusals(results)
    assert name == "partition 1" and words in refusals(results)[name]
    entry = next(e for e in results["ledger"]["entries"] if e["refused"])
    assert entry["phase"] == "reconstruct"
    assert [one["block"] for one in told_of(results)] == [0, 1, 2]


def test_a_client_lost_while_a_block_is_fitted_is_left_out(tmp_path, opt):
    def tamper(partition, reply):
        arrays = reply.content.array_records.get("arrays", {})
        about = any("reconstruct" in one.stype for one in arrays.values())
        return None if partition == 2 and about else reply

    more = ("reconstruct=fedavg", "reconstruct.exchanges=2", "strategy.timeout=0.5")
    grid = LocalGrid(app, 3, tamper=tamper)
    results = job(tmp_path / "run", *FIT, opt, *more, "strategy.rejoin=0", grid=grid)
    assert set(refusals(results)) == {"partition 2"}
    assert len(told_of(results)) == 3


def test_a_site_that_sends_no_gradients_takes_no_part(tmp_path, opt):
    own = {"partition-id": 0, "num-partitions": 3, "may-send": "masks,sums,weights,moments"}
    grid = LocalGrid(app, 3, node_configs={0: own})
    results = job(tmp_path / "run", *FIT, opt, "reconstruct=fedavg", grid=grid)
    (reason,) = refusals(results).values()
    assert "gradients" in reason
    assert len(results["clients"]) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("strategy=fedstats",), "schedule=iterative"),
        (("strategy=fedhessian", "pruner=structured", ITERATIVE), "removes units"),
        (("strategy=fedhessian", "pruner=gptq", "sparsity=0", ITERATIVE), "quantised weights"),
        (("strategy=fedstats", ITERATIVE, "privacy.secure=true"), "under masks"),
        (("strategy=fedstats", ITERATIVE, "privacy.first_input=public"), "sent as they are"),
        (("strategy=fedstats", ITERATIVE, "privacy.epsilon=8"), "sent as they are"),
        (("strategy=fedstats", ITERATIVE, "reconstruct.local_steps=3"), "reconstruct=fedavg"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_any_work(options, words):
    with pytest.raises(ConfigError, match=words):
        config_from_overrides([*options, "reconstruct=fedsgd"])
