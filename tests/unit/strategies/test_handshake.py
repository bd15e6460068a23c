import time
from dataclasses import replace

import pytest
from flwr.app import Message, RecordDict

from fedprune.config import RunConfig, config_from_overrides
from fedprune.errors import QuorumError
from fedprune.methods.public_model import PublicModel
from fedprune.records import NodeReport, report_record
from fedprune.results.ledger import Ledger
from strategies.handshake import Handshake
from tests.support.grid import LocalGrid, client_app

PLAN = PublicModel(({},), "c" * 64, "w" * 64, "s" * 64, lambda block, name: None)


def good(partition: int, total: int) -> NodeReport:
    return NodeReport(
        partition, total, "", "c" * 64, "w" * 64, "s" * 64, 4, 512, "cpu", 1, "torch 2", ""
    )


def patient(least: int, wait: float) -> RunConfig:
    keys = {"min_clients": least, "wait": wait, "timeout": 0.5}
    overrides = [f"strategy.{key}={value}" for key, value in keys.items()]
    return config_from_overrides([*overrides, "federation.num_clients=8"])


def shake(nodes, change=None, min_clients=1, wait=0.3, tamper=None):
    def handler(message, context):
        partition = context.node_config["partition-id"]
        report = good(partition, nodes)
        report = (change or {}).get(partition, lambda r: r)(report)
        return Message(report_record(report), reply_to=message)

    ledger = Ledger()
    grid = LocalGrid(client_app(handler), nodes, tamper=tamper)
    handshake = Handshake(PLAN, patient(min_clients, wait), ledger, 4, "0" * 32)
    return handshake, grid, ledger


def test_clients_come_in_the_order_of_their_partitions():
    handshake, grid, ledger = shake(5)
    grid.get_node_ids = lambda: [104, 100, 103, 101, 102]
    clients = handshake.run(grid, lambda done, total: None)
    assert [client.report.partition_id for client in clients] == [0, 1, 2, 3, 4]
    assert [entry.phase for entry in ledger.entries] == ["handshake"] * 5
    assert all(entry.bytes_up > 0 and entry.bytes_down > 0 for entry in ledger.entries)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: replace(r, weights_hash="bad0" * 16), ["weights differ", "bad0" * 4, "w" * 16]),
        (lambda r: replace(r, config_hash="bad1" * 16), ["configuration differ", "bad1" * 4]),
        (lambda r: replace(r, code_hash="bad2" * 16), ["other sources", "bad2" * 4]),
        (lambda r: replace(r, problem="too little text"), ["too little text"]),
        (lambda r: replace(r, partition_id=0), ["already holds this partition"]),
    ],
)
def test_odd_node_is_refused_by_name_and_others_go_on(change, words):
    handshake, grid, ledger = shake(3, {1: change})
    clients = handshake.run(grid, lambda done, total: None)
    assert [client.report.partition_id for client in clients] == [0, 2]
    (refused,) = [entry for entry in ledger.entries if entry.refused]
    assert refused.client.startswith("partition")
    for word in words:
        assert word in refused.refused


def test_reply_that_is_no_report_is_refused():
    def handler(message, context):
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(client_app(handler), 1)
    with pytest.raises(QuorumError, match="0 of 1 nodes can take part"):
        handshake = Handshake(PLAN, patient(1, 0.2), Ledger(), 4, "0" * 32)
        handshake.run(grid, lambda done, total: None)


def test_a_run_that_goes_on_waits_for_all_of_its_clients():
    """After a reboot nodes connect one by one, and none says how many there are."""
    handshake, grid, _ = shake(3, dict.fromkeys(range(3), lambda r: replace(r, num_partitions=0)))
    answers = iter([[100], [100, 101]])
    grid.get_node_ids = lambda: next(answers, [100, 101, 102])
    clients = replace(handshake, expected=3, config=patient(1, 30.0)).run(
        grid, lambda done, total: None
    )
    assert len(clients) == 3


def test_too_few_nodes_of_which_none_was_refused_says_what_to_do():
    handshake, grid, _ = shake(2, min_clients=3)
    with pytest.raises(QuorumError, match=r"2 of 2 nodes.*Start more.*`strategy.wait`"):
        handshake.run(grid, lambda done, total: None)


def test_no_node_at_all_says_how_to_get_one():
    handshake, grid, _ = shake(0)
    with pytest.raises(QuorumError, match="no node connected within 0.3 s.*num-supernodes"):
        handshake.run(grid, lambda done, total: None)


def test_silent_node_is_left_out():
    handshake, grid, ledger = shake(3, tamper=lambda p, reply: None if p == 2 else reply)
    assert len(handshake.run(grid, lambda done, total: None)) == 2
    assert "no reply within" in [e.refused for e in ledger.entries if e.refused][0]


def test_waits_for_partitions_that_connect_late():
    handshake, grid, _ = shake(4, wait=5.0)
    everyone, calls = list(grid.get_node_ids()), []

    def growing():
        calls.append(1)
        return everyone[: min(len(calls) - 1, 4)]

    grid.get_node_ids = growing
    seen = []
    clients = handshake.run(grid, lambda done, total: seen.append((done, total)))
    assert len(clients) == 4
    assert seen[-1] == (4, 4)


def test_who_connects_while_others_are_asked_is_not_too_late():
    """A first node that takes longer than `strategy.wait` must not shut out those who came then."""
    handshake, grid, _ = shake(3, wait=0.05)
    looks = iter([[100]])
    grid.get_node_ids = lambda: next(looks, [100, 101, 102])
    clients = handshake.run(grid, lambda done, total: time.sleep(0.1))
    assert len(clients) == 3


def test_goes_on_without_partitions_that_never_connect():
    handshake, grid, _ = shake(4, wait=0.3)
    grid.get_node_ids = lambda: [100, 101]
    assert len(handshake.run(grid, lambda done, total: None)) == 2


def test_minimum_counts_accepted_nodes():
    change = {0: lambda r: replace(r, problem="no texts")}
    handshake, grid, _ = shake(2, change, min_clients=2)
    with pytest.raises(QuorumError, match="1 of 2 nodes can take part.*asks for 2"):
        handshake.run(grid, lambda done, total: None)


def test_a_node_that_lacks_a_model_which_nobody_sends():
    change = {1: lambda r: replace(r, lacks_model=True, weights_hash="", config_hash="")}
    handshake, grid, ledger = shake(2, change)
    assert len(handshake.run(grid, lambda done, total: None)) == 1
    (refused,) = [entry.refused for entry in ledger.entries if entry.refused]
    assert refused == "it lacks the model, which is not sent from here."


def test_what_an_operator_should_look_at_is_logged_by_name(caplog):
    change = {1: lambda r: replace(r, site="north", warnings="'dat-path' is no key.")}
    handshake, grid, _ = shake(2, change)
    with caplog.at_level("WARNING", "flwr"):
        assert len(handshake.run(grid, lambda done, total: None)) == 2
    assert "'north' (partition 1): 'dat-path' is no key." in caplog.text


def says(number: int):
    return lambda report: replace(report, num_partitions=number)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ([3, 3, 2**31 - 1], [2]),
        ([2**31 - 1, 3, 0], [0]),
        ([2, 3, 3], [0]),
        ([0, 0, 0], []),
    ],
)
def test_a_node_that_counts_otherwise_makes_nobody_wait(said, wrong, caplog):
    change = {partition: says(number) for partition, number in enumerate(said)}
    handshake, grid, _ = shake(3, change, wait=3600.0)
    with caplog.at_level("WARNING", "flwr"):
        assert len(handshake.run(grid, lambda done, total: None)) == 3
    named = [line for line in caplog.messages if "num-partitions" in line]
    assert [line.split(" says")[0] for line in named] == [f"partition {n}" for n in wrong]
