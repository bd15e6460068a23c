"""A site that approves jobs and records what leaves it, in whole runs."""

import json

import pytest

from client_app.app import app
from client_app.approval import approve, requests
from client_app.ledger import entries
from fedprune.cli import main
from fedprune.disk import home
from server_app.job import run_job
from tests.support.grid import LocalGrid

SMALL = (
    "pruner.num_calibration_samples=2 pruner.seq_len=32 evaluation.max_windows=2 "
    "evaluation.centralized=false strategy.wait=1 strategy.min_clients=1"
)


def run(folder, nodes, overrides=""):
    grid = LocalGrid(app, len(nodes), node_configs=nodes)
    options = {"overrides": f"{SMALL} {overrides}", "output-dir": str(folder)}
    return json.loads((run_job(grid, options, 7) / "results.json").read_text()), grid


def test_everything_that_leaves_is_in_the_ledger(tmp_path):
    path = tmp_path / "north" / "ledger.jsonl"
    nodes = {
        0: {"partition-id": 0, "num-partitions": 2, "site": "north", "ledger": str(path)},
        1: {"partition-id": 1, "num-partitions": 2},
    }
    arrived = []

    def seen(partition, reply):
        if partition == 0:
            arrived.append(reply)
        return reply

    grid = LocalGrid(app, 2, node_configs=nodes, tamper=seen)
    options = {"overrides": SMALL, "output-dir": str(tmp_path / "run")}
    results = json.loads((run_job(grid, options, 7) / "results.json").read_text())
    found = list(entries(path))
    assert [one.digest for one in found] == [reply.content.object_id for reply in arrived]
    assert {one.request for one in found} == {
        "query.handshake",
        "train.prune",
        "evaluate.local",
        "query.forget",
    }
    (pruned,) = (one for one in found if one.request == "train.prune")
    assert (pruned.strategy, pruned.sends, pruned.error) == ("fedprllm", "masks", "")
    assert pruned.bytes > results["sparsity"]["weights"] / 8
    assert {one.app for one in found} == {results["code_hash"]}
    assert main(["ledger", "verify", str(path)]) == 0


def test_what_cannot_be_recorded_does_not_leave(tmp_path):
    (tmp_path / "file").write_text("")
    nodes = {
        0: {"partition-id": 0, "num-partitions": 2, "ledger": str(tmp_path / "file" / "x")},
        1: {"partition-id": 1, "num-partitions": 2},
    }
    results, grid = run(tmp_path / "run", nodes)
    assert [one["partition_id"] for one in results["clients"]] == [1]


def test_a_refused_job_is_in_the_ledger_with_its_reason(tmp_path):
    path = tmp_path / "ledger"
    nodes = {
        0: {"partition-id": 0, "num-partitions": 2, "ledger": str(path), "may-send": "sums"},
        1: {"partition-id": 1, "num-partitions": 2},
    }
    run(tmp_path / "run", nodes)
    (refused,) = entries(path)
    assert (refused.request, refused.sends) == ("query.handshake", "masks")


@pytest.fixture
def asking(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "home"))
    return {
        0: {"partition-id": 0, "num-partitions": 2, "site": "north", "approve": "ask"},
        1: {"partition-id": 1, "num-partitions": 2},
    }


def clients(results):
    return [one["partition_id"] for one in results["clients"]]


def test_a_job_waits_for_the_operator_and_the_others_go_on(tmp_path, asking, capsys):
    results, _ = run(tmp_path / "a", asking)
    assert clients(results) == [1]
    (waiting,) = requests()
    assert (waiting.site, waiting.sends, waiting.approved) == ("north", ("masks",), "")
    assert any("which weights it would prune" in one for one in waiting.summary)
    assert main(["approve"]) == 0
    shown = capsys.readouterr().out
    assert waiting.key[:12] in shown and "waiting" in shown and "2 samples of 32 tokens" in shown
    assert main(["approve", waiting.key[:12]]) == 0
    assert clients(run(tmp_path / "b", asking)[0]) == [0, 1]
    # Another sparsity is the same job, more samples are another.
    assert clients(run(tmp_path / "c", asking, "sparsity=0.6")[0]) == [0, 1]
    assert clients(run(tmp_path / "d", asking, "pruner.num_calibration_samples=3")[0]) == [1]
    assert [bool(one.approved) for one in requests()].count(False) == 1


def test_a_survey_is_approved_with_the_job_and_not_after_it(tmp_path, asking):
    assert clients(run(tmp_path / "a", asking)[0]) == [1]
    approve(requests()[0].key)
    assert clients(run(tmp_path / "b", asking, "allocation=owl")[0]) == [1]
    (owl,) = (one for one in requests() if not one.approved)
    assert owl.sends == ("masks", "sums")
    approve(owl.key[:8])
    # The allocation is another once the survey is over, and the job the same.
    assert clients(run(tmp_path / "c", asking, "allocation=owl")[0]) == [0, 1]


def test_a_job_that_nobody_was_asked_for_cannot_be_approved(tmp_path, asking, capsys):
    assert main(["approve", "abcdef"]) == 2
    assert "Waiting: none" in capsys.readouterr().err
    run(tmp_path / "a", asking)
    assert main(["approve", requests()[0].key[:3]]) == 2
    assert requests()[0].key[:12] in capsys.readouterr().err


def test_a_damaged_request_is_no_approval_and_names_no_path_outside(asking, tmp_path):
    run(tmp_path / "a", asking)
    (place,) = (home() / "nodes" / "approvals").rglob("*.json")
    place.write_text(place.read_text().replace('"approved": ""', '"approved": "now"')[:-9])
    grid = LocalGrid(app, 2, node_configs=asking)
    options = {"overrides": SMALL, "output-dir": str(tmp_path / "b")}
    results = json.loads((run_job(grid, options, 7) / "results.json").read_text())
    assert clients(results) == [1]
