"""FedPrLLM's rounds with scripted clients: votes, refusals, quorum, bytes."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from fedprune.config import config_from_overrides
from fedprune.errors import QuorumError
from fedprune.methods.public_model import PublicModel
from fedprune.records import (
    PruneReply,
    message_bytes,
    prune_record,
    read_order,
)
from fedprune.results.ledger import Ledger
from fedprune.wire.masks import BitMask, encode_masks
from strategies import FedPrLLM
from strategies.messages import ExchangeClient
from tests.support.grid import LocalGrid, client_app
from tests.support.scripted import SHAPES, WEIGHTS, client_mask, run, scripted, weight
from tests.support.store import MemoryStore

MASKS = "fedprune.masks.v2"


def voted(clients, block, name, sparsity=0.5):
    """FedPrLLM's server step, slowly: most voted first, then smaller |W|, then lower index."""
    votes = sum(~client_mask(partition, block, name) for partition in clients).reshape(-1)
    magnitude = WEIGHTS[block, name].reshape(-1)
    order = sorted(range(votes.size), key=lambda j: (-votes[j], magnitude[j], j))
    mask = np.ones(votes.size, dtype=bool)
    mask[order[: int(votes.size * sparsity)]] = False
    return mask.reshape(SHAPES[block][name])


def check(results, clients):
    assert [result.block for result in results] == [0, 1, 2]
    for result in results:
        assert result.voters == len(clients)
        for name, mask in result.masks.items():
            assert np.array_equal(mask.to_bool(), voted(clients, result.block, name))
            counts = sum(~client_mask(p, result.block, name) for p in clients).reshape(-1)
            expected = np.bincount(counts, minlength=len(clients) + 1)
            assert np.array_equal(result.histograms[name], expected)


@pytest.mark.parametrize("size", ["1", "2", "null"])
@pytest.mark.parametrize("nodes", [1, 3, 8])
def test_votes_equal_the_formula_however_blocks_are_sent(nodes, size):
    strategy, grid, results = run(nodes, [f"schedule.blocks_per_message={size}"])
    strategy.start(grid)
    check(results, range(nodes))


def test_order_of_replies_does_not_matter():
    def masks(order):
        strategy, grid, results = run(4)
        grid.get_node_ids = lambda: order
        strategy.start(grid)
        return [result.masks for result in results]

    first = masks([100, 101, 102, 103])
    assert masks([103, 100, 102, 101]) == first


def test_ledger_has_the_real_bytes_of_every_message():
    replies = []

    def watch(partition, reply):
        replies.append(message_bytes(reply))
        return reply

    strategy, grid, _ = run(2, ["schedule.blocks_per_message=2"], tamper=watch)
    strategy.start(grid)
    # The last two only tell the nodes that the job is over.
    assert [m.metadata.message_type for m in grid.sent[-2:]] == ["query.forget"] * 2
    assert [entry.bytes_up for entry in strategy.ledger.entries] == replies[:-2]
    assert strategy.ledger.bytes_down == sum(message_bytes(message) for message in grid.sent[:-2])
    rounds = [(entry.round, entry.phase) for entry in strategy.ledger.entries]
    assert rounds == [(0, "handshake")] * 2 + [(1, "prune")] * 2 + [(2, "prune")] * 2
    assert strategy.ledger.entries[-1].client_seconds == 0.25


def corrupt(change):
    """Tamper with partition 1's masks."""

    def tamper(partition, reply):
        if partition == 1 and "arrays" in reply.content:
            arrays = reply.content["arrays"]
            for key in list(arrays):
                data = change(arrays[key].data)
                arrays[key] = Array("uint8", (len(data),), arrays[key].stype, data)
        return reply

    return tamper


def bad_mask(shape_a=(4, 10), sparsity=0.5):
    def change(data):
        masks = {"a": np.ones(shape_a, dtype=bool), "b": client_mask(1, 0, "b")}
        masks["a"][:, : int(shape_a[1] * sparsity)] = False
        return encode_masks({name: BitMask.from_bool(mask) for name, mask in masks.items()})

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-3], "bytes"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "block 0: "),
        (lambda data: data + bytes(5000), "at most"),
        (bad_mask(shape_a=(5, 8)), "linear 'a'"),
        (bad_mask(sparsity=0.4), "row 0 must have 5 survivors, got 6"),
    ],
    ids=["truncated", "flipped", "oversized", "wrong shape", "wrong zeros"],
)
def test_bad_mask_is_refused_counted_and_left_out(change, words):
    strategy, grid, results = run(3, tamper=corrupt(change))
    strategy.start(grid)
    check(results, [0, 2])
    (refused,) = [entry for entry in strategy.ledger.entries if entry.refused]
    assert refused.client == "partition 1" and refused.bytes_up > 0
    assert words in refused.refused


def test_missing_block_is_refused():
    def drop(partition, reply):
        if partition == 0 and "arrays" in reply.content:
            reply.content["arrays"] = ArrayRecord(dict(list(reply.content["arrays"].items())[:2]))
        return reply

    strategy, grid, results = run(2, tamper=drop)
    strategy.start(grid)
    check(results, [1])


def test_client_that_fails_later_is_left_out_from_there_on():
    def silent_after_first(partition, reply):
        arrays = reply.content.array_records.get("arrays", {})
        return None if partition == 2 and "block-00001" in arrays else reply

    options = ["schedule.blocks_per_message=1"]
    strategy, grid, results = run(3, options, tamper=silent_after_first)
    strategy.start(grid)
    assert [result.voters for result in results] == [3, 2, 2]
    for result in results:
        clients = range(3) if result.block == 0 else range(2)
        for name, mask in result.masks.items():
            assert np.array_equal(mask.to_bool(), voted(clients, result.block, name))
    assert strategy.ledger.refused() == {"partition 2": 1}
    orders = [m for m in grid.sent if m.metadata.message_type == "train.prune"]
    asked = [m.metadata.dst_node_id for m in orders if read_order(m).blocks == (2,)]
    assert sorted(asked) == [100, 101]


def test_too_few_replies_stop_the_run_and_keep_finished_blocks():
    def silent(partition, reply):
        arrays = reply.content.array_records.get("arrays", {})
        return None if partition > 0 and "block-00002" in arrays else reply

    options = ["schedule.blocks_per_message=2", "strategy.min_clients=2"]
    strategy, grid, results = run(3, options, tamper=silent)
    with pytest.raises(QuorumError, match="1 clients gave a usable reply.*asks for 2"):
        strategy.start(grid)
    assert [result.block for result in results] == [0, 1]


def disturbed(change):
    """FedPrLLM whose replies pass through ``change``."""

    class DisturbedClient(ExchangeClient):
        def replies(self, messages, phase, report, **options):
            return change(super().replies(messages, phase, report, **options))

    class Disturbed(FedPrLLM):
        def exchange_client(self, grid):
            return DisturbedClient(**vars(super().exchange_client(grid)))

    return Disturbed


def test_duplicate_reply_counts_once():
    def twice(replies):
        for message in replies:
            yield message
            yield message

    strategy, grid, results = run(2, strategy_type=disturbed(twice))
    strategy.start(grid)
    check(results, [0, 1])
    assert strategy.ledger.refused() == {"partition 0": 1, "partition 1": 1}


def test_reply_of_a_stranger_is_ignored():
    def stranger(replies):
        for message in replies:
            yield message
            message.metadata.__dict__["_src_node_id"] = 999
            yield message

    strategy, grid, results = run(2, strategy_type=disturbed(stranger))
    strategy.start(grid)
    check(results, [0, 1])


def test_local_results_are_collected_by_name_and_a_bad_one_does_not_stop_the_run():
    def bad(partition, reply):
        if partition == 1 and "arrays" not in reply.content and "metrics" in reply.content:
            reply.content["metrics"]["nll"] = float("nan")
        return reply

    strategy, grid, _ = run(3, ["evaluation.local_only=true"], tamper=bad)
    strategy.start(grid)
    assert {name: found.nll for name, found in strategy.state.local.items()} == {
        "partition 0": 1.0,
        "partition 2": 3.0,
    }
    assert strategy.ledger.refused() == {"partition 1": 1}


def test_nm_pattern_keeps_n_of_every_m():
    def handler(message, context):
        if message.metadata.message_type != "train.prune":
            return scripted(message, context)
        draw = np.random.default_rng(context.node_config["partition-id"])
        data = {}
        for block, shapes in enumerate(SHAPES[:1]):
            masks = {}
            for name, (rows, columns) in shapes.items():
                keep = np.zeros((rows * columns // 2, 2), dtype=bool)
                keep[np.arange(len(keep)), draw.integers(0, 2, len(keep))] = True
                masks[name] = BitMask.from_bool(keep.reshape(rows, columns))
            data[block] = encode_masks(masks)
        return Message(prune_record(PruneReply(data, 0.1, 1, 0, 1), MASKS), reply_to=message)

    config = config_from_overrides(
        ["strategy.wait=0.2", "strategy.min_clients=1", "evaluation.local_only=false"]
        + ["pruner.pattern='1:2'", "sparsity=0.5"]
    )
    store = MemoryStore()
    plan = PublicModel(SHAPES[:1], "c", "w", "s", weight)
    grid = LocalGrid(client_app(handler), 5)
    FedPrLLM(config, plan, store, Ledger()).start(grid)
    for mask in store.results[0].masks.values():
        assert np.all(mask.to_bool().reshape(-1, 2).sum(axis=1) == 1)
