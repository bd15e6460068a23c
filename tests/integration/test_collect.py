"""Statistics are collected once; models made of them are those that a federation makes."""

import json

import pytest
import torch

from client_app.app import app
from fedprune.methods.statistics_folder import StatisticsFolder
from server_app.job import solve_job
from tests.support.jobs import (
    QUIET,
    Shuffled,
    job,
    masks_of,
    same_masks,
    weights_of,
)

COLLECT = ("strategy=collect", "strategy.timeout=60")
DENSE = ("schedule.prefix=dense", "strategy.timeout=60")


def solve(statistics, folder, *overrides):
    options = " ".join([*QUIET, "strategy=collect", *overrides])
    found = StatisticsFolder.open(statistics)
    solve_job(found, {"overrides": options, "output-dir": str(folder)}, 12)
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected") / "run"
    kinds = "strategy.statistics='columns,values,moments'"
    job(folder, *COLLECT, kinds, grid=Shuffled(app, 3, seed=1))
    return folder


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("fedstats", ("pruner=wanda", "sparsity=0.6")),
        ("fedstats", ("pruner=ria", "sparsity=0.4")),
        ("fedstats", ("pruner=wanda", "pruner.pattern='2:4'")),
        ("fedstats", ("pruner=wanda", "sparsity=0.7", "allocation=owl")),
        ("fedhessian", ("pruner=sparsegpt", "sparsity=0.6")),
        ("fedhessian", ("pruner=sparseswaps",)),
    ],
)
def test_a_model_of_statistics_is_the_one_shot_model_to_the_last_bit(
    tmp_path, collected, strategy, options
):
    job(tmp_path / "run", f"strategy={strategy}", *DENSE, *options)
    results = solve(collected, tmp_path / "solved", *options)
    assert same_masks(masks_of(tmp_path / "run"), masks_of(tmp_path / "solved"))
    expected, found = weights_of(tmp_path / "run"), weights_of(tmp_path / "solved")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["perplexity"] == told["perplexity"]
    assert results["sparsity"] == told["sparsity"]
    assert results["statistics"]["participants"] == 3 and results["ledger"]["bytes_up"] == 0
