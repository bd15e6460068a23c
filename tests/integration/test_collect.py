"""Statistics are collected once; models made of them are those that a federation makes."""

import json

import numpy as np
import pytest
import torch

from client_app.app import app
from fedprune.errors import ConfigError, QuorumError
from fedprune.methods.statistics_folder import StatisticsFolder
from server_app.job import run_job
from tests.support import jobs
from tests.support.grid import LocalGrid, garbled
from tests.support.jobs import Shuffled, job, masks_of, same_masks, small_messages, weights_of

pytestmark = pytest.mark.usefixtures("three_blocks")

COLLECT = ("strategy=collect", "strategy.timeout=60")
DENSE = ("schedule.prefix=dense", "strategy.timeout=60")


def solve(statistics, folder, *overrides):
    options = " ".join([*jobs.QUIET, "strategy=collect", *overrides])
    found = StatisticsFolder.open(statistics)
    run_job(found, {"overrides": options, "output-dir": str(folder)}, 12)
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


def statistics_of(folder):
    found = StatisticsFolder.open(folder)
    return [found.arrays(block) for block in range(found.num_blocks)]


def same(first, second):
    return all(
        one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
        for one, two in zip(first, second, strict=True)
    )


KINDS = "strategy.statistics='columns,values,moments'"


def test_blocks_in_several_messages_and_messages_in_segments_are_the_same_statistics(
    tmp_path, monkeypatch, collected
):
    job(tmp_path / "cut", *COLLECT, KINDS, "schedule.blocks_per_message=2")
    small_messages(monkeypatch, 1 << 18)
    grid = Shuffled(app, 3, seed=2)
    job(tmp_path / "short", *COLLECT, KINDS, grid=grid)
    fetched = [m for m in grid.sent if m.metadata.message_type == "query.fetch"]
    assert fetched and grid.kept() == []
    for name in ("cut", "short"):
        assert same(statistics_of(collected), statistics_of(tmp_path / name))


def test_an_operator_may_refuse_moments_and_send_sums(tmp_path):
    own = {"partition-id": 0, "num-partitions": 2, "may-send": "masks,sums"}
    grid = LocalGrid(app, 2, node_configs={0: own})
    with pytest.raises(QuorumError, match="this job asks for moments"):
        job(tmp_path / "no", *COLLECT, KINDS, "strategy.min_clients=2", grid=grid)
    results = job(tmp_path / "yes", *COLLECT, grid=LocalGrid(app, 2, node_configs={0: own}))
    assert results["statistics"]["participants"] == 2


def test_a_client_that_sends_garbage_is_no_participant(tmp_path):
    grid = LocalGrid(app, 3, tamper=garbled("block-00001"))
    results = job(tmp_path / "run", *COLLECT, grid=grid)
    assert results["ledger"]["refused"] == {"partition 1": 1}
    told = StatisticsFolder.open(tmp_path / "run").manifest
    assert [one.partition_id for one in told.participants] == [0, 2]
    others = {place: {"partition-id": 2 * place, "num-partitions": 3} for place in (0, 1)}
    job(tmp_path / "two", *COLLECT, grid=LocalGrid(app, 2, node_configs=others))
    assert same(statistics_of(tmp_path / "run"), statistics_of(tmp_path / "two"))


def test_nobody_is_asked_for_what_only_a_federation_knows(tmp_path):
    with pytest.raises(ConfigError, match="`evaluation.federated` must be false"):
        job(tmp_path / "run", *COLLECT, "evaluation.federated=true")
    grid = LocalGrid(app, 2)
    job(tmp_path / "own", *COLLECT, "evaluation.local_only=true", grid=grid)
    assert not [m for m in grid.sent if m.metadata.message_type == "evaluate.local"]
