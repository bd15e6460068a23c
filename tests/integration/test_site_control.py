"""A site that approves jobs and records what leaves it, in whole runs."""

import json
from pathlib import Path

import pytest

from client_app.app import app
from client_app.approval import approve, requests
from client_app.ledger import entries
from client_app.policy import Policy, signed_text
from fedprune.cli import main
from fedprune.disk import home
from server_app.job import run_job
from tests.support.grid import LocalGrid
from tests.support.jobs import refusals
from tests.support.signing import signed_roster, signing_key, site_keys

pytestmark = pytest.mark.usefixtures("three_blocks")

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


def refusal(results):
    (told,) = set(refusals(results).values())
    return told


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


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: '{"who": 1,' + text[1:]])
def test_a_damaged_request_is_no_approval_and_names_no_path_outside(asking, tmp_path, damage):
    run(tmp_path / "a", asking)
    (place,) = (home() / "nodes" / "approvals").rglob("*.json")
    place.write_text(damage(place.read_text().replace('"approved": ""', '"approved": "now"')))
    grid = LocalGrid(app, 2, node_configs=asking)
    options = {"overrides": SMALL, "output-dir": str(tmp_path / "b")}
    results = json.loads((run_job(grid, options, 7) / "results.json").read_text())
    assert clients(results) == [1]


POLICY = """
format = "fedprune-policy"
version = 1
strategies = ["fedprllm"]
payloads = ["masks"]
perplexities = true
"""


@pytest.fixture
def standing(tmp_path, asking):
    """Let the first node have a standing policy; returns its nodes and a way to sign another."""
    key = signing_key(tmp_path / "operator.key")
    place, ledger = tmp_path / "policy.toml", tmp_path / "ledger"

    def sign(text):
        place.write_text(signed_text(text, Policy.parse(text.encode(), place), key))

    sign(POLICY)
    own = {"policy": str(place), "operator-key": key.public.text, "ledger": str(ledger)}
    return {0: asking[0] | own, 1: asking[1]}, sign, place


def test_a_standing_policy_allows_without_asking_and_holds_what_is_beyond(
    tmp_path, standing, capsys
):
    nodes, _, place = standing
    assert clients(run(tmp_path / "a", nodes)[0]) == [0, 1]
    assert not requests()
    results, _ = run(tmp_path / "b", nodes, "strategy=fedstats")
    assert clients(results) == [1]
    (waiting,) = requests()
    assert waiting.limits[0].startswith("`strategies` has 'fedprllm', this job's is 'fedstats'")
    assert waiting.limits[1].startswith("`payloads` has masks, this job asks for sums")
    assert main(["approve", waiting.key[:12]]) == 0
    assert "Beyond the standing policy: `payloads` has masks" in capsys.readouterr().out
    assert clients(run(tmp_path / "c", nodes, "strategy=fedstats")[0]) == [0, 1]
    # Who can write the file but not sign does not widen it.
    place.write_text(place.read_text().replace('["masks"]', '["masks", "sums"]'))
    assert clients(run(tmp_path / "d", nodes)[0]) == [1]
    assert "changed after it was signed" in requests()[-1].limits[0]


def test_what_is_beyond_a_policy_is_refused_where_nobody_is_asked(tmp_path, standing):
    nodes, sign, _ = standing
    nodes = {0: {key: value for key, value in nodes[0].items() if key != "approve"}, 1: nodes[1]}
    assert clients(run(tmp_path / "a", nodes)[0]) == [0, 1]
    results, _ = run(tmp_path / "b", nodes, "strategy=fedstats")
    assert "Its operator is not asked (`approve`). Its standing policy does" in refusal(results)
    last = list(entries(Path(nodes[0]["ledger"])))[-1]
    assert (last.strategy, last.request) == ("fedstats", "query.handshake")
    sign(POLICY + "expires = 2020-01-01\n")
    assert clients(run(tmp_path / "c", nodes)[0]) == [1]
    assert not requests()


def test_bytes_a_day_are_counted_in_the_ledger_and_the_answer_beyond_stays(tmp_path, standing):
    nodes, sign, _ = standing
    ledger = Path(nodes[0]["ledger"])
    assert clients(run(tmp_path / "a", nodes)[0]) == [0, 1]
    once = sum(one.bytes for one in entries(ledger))
    answer = max(one.bytes for one in entries(ledger))
    # Room for handshakes and figures, not for the masks.
    sign(POLICY + f"mb-per-day = {(once + answer - 1) / 1e6}\n")
    results, _ = run(tmp_path / "b", nodes)
    assert "standing policy allows" in refusal(results)
    found = list(entries(ledger))
    assert sum(one.bytes for one in found if one.bytes == answer) == answer
    (withheld,) = (one for one in found if one.error)
    assert withheld.request == "train.prune"
    assert f"this answer has {answer:,} bytes" in withheld.error
    assert "standing policy allows" in withheld.error and "`mb-per-day`" in withheld.error
    # Once it is used up, a job is told so before it works, and what was approved by key goes on.
    sign(POLICY + "mb-per-day = 0.001\n")
    assert clients(run(tmp_path / "c", nodes)[0]) == [1]
    (waiting,) = requests()
    assert waiting.limits[0].startswith("`mb-per-day` is 0.001, ")
    approve(waiting.key)
    assert clients(run(tmp_path / "d", nodes)[0]) == [0, 1]
    assert main(["ledger", "verify", str(ledger)]) == 0


def test_a_site_refuses_to_be_seen_alone(tmp_path):
    keys = site_keys(["north", "south"], tmp_path)
    roster = tmp_path / "roster.toml"
    signed_roster(keys).write(roster)
    own = {"partition-id": 0, "num-partitions": 2, "site": "north", "ledger": str(tmp_path / "l")}
    key = {"signing-key": str(tmp_path / "north.key")}
    for number, (more, said) in enumerate(
        (
            ({"min-cohort": 3}, "privacy.secure=true privacy.min_cohort=3"),
            (
                key | {"roster": str(roster)},
                "in this site's roster is 2, this job shows the server",
            ),
            (key | {"roster": str(tmp_path / "none")}, "roster cannot be read; its own log"),
            (
                {"signing-key": str(tmp_path / "south.key"), "roster": str(roster)},
                "`site` in the node's --node-config is 'north', the roster calls",
            ),
        )
    ):
        nodes = {0: own | more, 1: {"partition-id": 1, "num-partitions": 2}}
        results, _ = run(tmp_path / f"run-{number}", nodes)
        assert clients(results) == [1]
        assert said in refusal(results) and str(tmp_path) not in refusal(results)
    nodes[0] = own | key | {"roster": str(roster), "min-cohort": 1}
    assert clients(run(tmp_path / "run", nodes)[0]) == [0, 1]
