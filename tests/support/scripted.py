"""Clients that follow a script, so that a strategy's rounds can be checked by hand."""

from dataclasses import replace

import numpy as np
import torch
from flwr.app import Message

from fedprune.config import config_from_overrides
from fedprune.methods.public_model import PublicModel
from fedprune.records import (
    LocalResult,
    NodeReport,
    PruneReply,
    local_record,
    prune_record,
    read_order,
    report_record,
)
from fedprune.results.ledger import Ledger
from fedprune.wire.masks import BitMask, encode_masks
from strategies import FedPrLLM
from tests.support.grid import LocalGrid, client_app
from tests.support.store import MemoryStore

MASKS = "fedprune.masks.v2"

SHAPES = ({"a": (4, 10), "b": (3, 8)}, {"a": (4, 10), "b": (3, 8)}, {"a": (4, 10), "b": (3, 8)})
DRAW = np.random.default_rng(7)
WEIGHTS = {
    (block, name): np.abs(DRAW.standard_normal(shape)).astype(np.float32)
    for block, shapes in enumerate(SHAPES)
    for name, shape in shapes.items()
}
REPORT = NodeReport(0, 0, "", "c", "w", "s", 1, 1, "cpu", 1, "", "")


def weight(block: int, name: str) -> torch.Tensor:
    """The public weight of a linear; its sizes decide ties."""
    return torch.from_numpy(WEIGHTS[block, name])


def client_mask(partition: int, block: int, name: str, sparsity: float = 0.5) -> np.ndarray:
    """A row-balanced mask that differs by client."""
    rows, columns = SHAPES[block][name]
    draw = np.random.default_rng([partition, block, ord(name)])
    mask = np.ones((rows, columns), dtype=bool)
    for row in range(rows):
        mask[row, draw.permutation(columns)[: int(columns * sparsity)]] = False
    return mask


def scripted(message, context):
    partition, total = context.node_config["partition-id"], context.node_config["num-partitions"]
    kind = message.metadata.message_type
    if kind == "query.handshake":
        report = replace(REPORT, partition_id=partition, num_partitions=total)
        return Message(report_record(report), reply_to=message)
    if kind == "evaluate.local":
        return Message(local_record(LocalResult(1.0 + partition, 10)), reply_to=message)
    blocks = read_order(message).blocks
    data = {
        block: encode_masks(
            {n: BitMask.from_bool(client_mask(partition, block, n)) for n in SHAPES[block]}
        )
        for block in blocks
    }
    return Message(prune_record(PruneReply(data, 0.25, 1000, 0, 1), MASKS), reply_to=message)


def run(nodes=3, overrides=(), tamper=None, strategy_type=FedPrLLM):
    config = config_from_overrides(
        ["strategy.wait=0.2", "strategy.timeout=0.3", "strategy.min_clients=1"]
        # Votes as published; whoever tests the floor says so.
        + ["evaluation.local_only=false", "pruner.group=row", "strategy.majority_floor=false"]
        + [*overrides]
    )
    plan = PublicModel(SHAPES, "c", "w", "s", weight)
    store = MemoryStore()
    strategy = strategy_type(config, plan, store, Ledger())
    grid = LocalGrid(client_app(scripted), nodes, tamper=tamper)
    return strategy, grid, store.results
