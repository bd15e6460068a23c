"""FedPrLLM's options with scripted clients: weights, fraction, groups, floor, scaling, updates."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Message

from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.methods.public_model import PublicModel
from fedprune.records import (
    PruneReply,
    prune_record,
    read_bundle,
    read_order,
    report_record,
)
from fedprune.results.ledger import Ledger
from fedprune.wire.changes import decode_update
from fedprune.wire.masks import BitMask, encode_masks
from strategies import FedPrLLM
from tests.support.grid import LocalGrid, client_app
from tests.support.scripted import (
    REPORT,
    SHAPES,
    WEIGHTS,
    client_mask,
    run,
    scripted,
    weight,
)

MASKS = "fedprune.masks.v2"


def kept(weights: dict[int, int], block: int, name: str) -> np.ndarray:
    """Weight of the clients that keep each entry, by hand."""
    return sum(weight * client_mask(p, block, name).astype(int) for p, weight in weights.items())


def expected(weights: dict[int, int], block: int, name: str, group: str) -> np.ndarray:
    """Least kept first, then smaller |W|, then lower index; half of each group goes."""
    keeps, magnitude = kept(weights, block, name), WEIGHTS[block, name]
    if group == "column":
        keeps, magnitude = keeps.T, magnitude.T
    shape = keeps.shape
    if group == "layer":
        keeps, magnitude = keeps.reshape(1, -1), magnitude.reshape(1, -1)
    mask = np.ones(keeps.shape, dtype=bool)
    for row in range(len(keeps)):
        places = range(keeps.shape[1])
        order = sorted(places, key=lambda j: (keeps[row, j], magnitude[row, j], j))
        mask[row, order[: keeps.shape[1] // 2]] = False
    mask = mask.reshape(shape)
    return mask.T if group == "column" else mask


def by_samples(message, context):
    """Scripted clients of which partition i has i + 1 samples."""
    if message.metadata.message_type != "query.handshake":
        return scripted(message, context)
    partition = context.node_config["partition-id"]
    report = replace(REPORT, partition_id=partition, num_partitions=3, samples=partition + 1)
    return Message(report_record(report), reply_to=message)


@pytest.mark.parametrize("group", ["layer", "row", "column"])
@pytest.mark.parametrize("weighting", ["equal", "samples"])
def test_groups_and_weights_equal_the_formula(group, weighting):
    options = [f"strategy.group={group}", f"strategy.client_weights={weighting}"]
    strategy, _, results = run(3, [*options, "strategy.scaling=true"])
    strategy.start(LocalGrid(client_app(by_samples), 3))
    weights = {p: p + 1 if weighting == "samples" else 1 for p in range(3)}
    assert [result.block for result in results] == [0, 1, 2]
    for result in results:
        assert result.voters == 3
        assert result.effective_voters == pytest.approx(3 if weighting == "equal" else 36 / 14)
        for name, update in result.changes.items():
            mask = expected(weights, result.block, name, group)
            assert np.array_equal(update.mask.to_bool(), mask)
            assert update.total == sum(weights.values())
            assert np.array_equal(update.keeps, kept(weights, result.block, name)[mask])


def test_a_fraction_of_the_clients_is_asked_and_the_others_hear_nothing_more():
    strategy, grid, results = run(8, ["strategy.fraction=0.3", "schedule.blocks_per_message=1"])
    strategy.start(grid)
    later = [m for m in grid.sent if m.metadata.message_type != "query.handshake"]
    asked = {m.metadata.dst_node_id for m in later}
    assert asked == {client.node_id for client in strategy.cohort.clients}
    assert len(asked) == 3 and [result.voters for result in results] == [3, 3, 3]
    weights = {node_id - 100: 1 for node_id in asked}
    for result in results:
        for name, mask in result.masks.items():
            wanted = expected(weights, result.block, name, "layer")
            assert np.array_equal(mask.to_bool(), wanted)


def test_a_majority_keeps_what_a_third_would_push_out():
    options = ["strategy.majority_floor=true"]
    strategy, grid, results = run(5, options)
    strategy.start(grid)
    for result in results:
        for name, mask in result.masks.items():
            prunes = 5 - kept(dict.fromkeys(range(5), 1), result.block, name).reshape(-1)
            magnitude = WEIGHTS[result.block, name].reshape(-1)
            order = sorted(
                range(prunes.size),
                key=lambda j: (-prunes[j] if prunes[j] > 2 else 0, magnitude[j], j),
            )
            wanted = np.ones(prunes.size, dtype=bool)
            wanted[order[: prunes.size // 2]] = False
            assert np.array_equal(mask.to_bool().reshape(-1), wanted)


@pytest.mark.parametrize("scaling", [False, True])
def test_iterative_requests_bring_the_block_before(scaling):
    options = ["schedule=iterative", f"strategy.scaling={str(scaling).lower()}"]
    strategy, grid, results = run(3, options)
    strategy.start(grid)
    rounds = [entry.round for entry in strategy.ledger.entries if entry.phase == "prune"]
    assert sorted(rounds) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for message in grid.sent[3:-3]:
        (start,) = read_order(message).blocks
        data = read_bundle(message).get("update")
        if start == 0:
            assert data is None
        else:
            assert decode_update(data, SHAPES[start - 1]) == results[start - 1].changes
            scaled = [update.keeps is not None for update in results[start - 1].changes.values()]
            assert scaled == [scaling] * 2


def test_random_ties_follow_the_seed():
    def masks(seed):
        strategy, grid, results = run(2, ["strategy.ties=random", f"seed={seed}"])
        strategy.start(grid)
        return [result.masks for result in results]

    assert masks(0) == masks(0)
    assert masks(0) != masks(1)


def test_each_block_reaches_its_own_sparsity():
    sparsities = (0.25, 0.5, 0.75)

    def handler(message, context):
        if message.metadata.message_type != "train.prune":
            return scripted(message, context)
        return scripted_prune(message, context.node_config["partition-id"], sparsities)

    options = ["allocation=per_block", "allocation.blocks=0.25,0.5,0.75", "pruner.group=layer"]
    strategy, _, results = run(3, options)
    strategy.start(LocalGrid(client_app(handler), 3))
    for result in results:
        for mask in result.masks.values():
            assert mask.survivors == mask.numel - int(mask.numel * sparsities[result.block])
    assert not strategy.ledger.refused()


def scripted_prune(message, partition, sparsities):
    data = {}
    for block, sparsity in enumerate(sparsities):
        masks = {}
        for name, shape in SHAPES[block].items():
            size = shape[0] * shape[1]
            mask = np.ones(size, dtype=bool)
            draw = np.random.default_rng([partition, block])
            mask[draw.permutation(size)[: int(size * sparsity)]] = False
            masks[name] = BitMask.from_bool(mask.reshape(shape))
        data[block] = encode_masks(masks)
    return Message(prune_record(PruneReply(data, 0.1, 1, 0, 1), MASKS), reply_to=message)


def test_an_allocation_for_another_model_stops_before_anybody_is_asked():
    options = ["evaluation.local_only=false", "allocation=per_block", "allocation.blocks=0.4,0.6"]
    config = config_from_overrides(options)
    plan = PublicModel(SHAPES, "c", "w", "s", weight)
    with pytest.raises(ConfigError, match="must list 3 sparsities"):
        FedPrLLM(config, plan, print, Ledger())
