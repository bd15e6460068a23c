"""One role of a run, alone in a process: `python -m benchmarks.roles ROLE MODEL CLIENTS`.

Prints a line of JSON with its seconds and its memory. The first figure of memory is that of the
process once everything is imported, the second is its peak; both count the pages of mapped files.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client_app.app  # noqa: F401 - part of what a process imports before it works
from benchmarks import baseline
from benchmarks.measure import NO_BASELINES, samples_of
from fedprune.config import RunConfig, config_from_overrides
from fedprune.evaluation.perplexity import evaluation_windows
from fedprune.flower.inline import InlineGrid
from fedprune.models.device import Limits
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import load_model
from fedprune.pruning.blocks import BlockWalk, prune_blocks
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import make_pruner
from fedprune.records import NodeReport, PruneReply, prune_record, read_order, report_record
from fedprune.results.environment import peak_rss_bytes, source_digest
from fedprune.wire.changes import mask_of
from fedprune.wire.masks import BitMask, encode_masks
from server_app.job import run_job

SAMPLES, SEQ_LEN = 2, 128
FORM = "fedprune.masks.v2"  # of what a node sends


def settings(model: str, *more: str) -> list[str]:
    """Return the overrides of the job that all roles are of."""
    return [
        f"model={model}",
        f"pruner.num_calibration_samples={SAMPLES}",
        f"pruner.seq_len={SEQ_LEN}",
        f"evaluation.seq_len={SEQ_LEN}",
        "evaluation.max_windows=2",
        *NO_BASELINES,
        *more,
    ]


def client(config: RunConfig, clients: int) -> None:
    """Do what a client does: hash the model, draw samples, prune and encode every block."""
    loaded = load_model(config.model)
    fingerprint(loaded)
    walk = BlockWalk(
        loaded, samples_of(config, loaded, 0, clients), limits=Limits.of(config.pruner)
    )
    count = walk.blocks_left
    specs = block_specs(config, range(count), count)
    for _, changes in prune_blocks(walk, make_pruner(config.pruner), specs):
        encode_masks({name: mask_of(change) for name, change in changes.items()})


def server(config: RunConfig, clients: int) -> None:
    """Do what a server does, with nodes that send some valid masks at once."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    with tempfile.TemporaryDirectory(dir=Path(config.model.path).parent) as folder:
        options = [*settings(config.model.path), f"strategy.min_clients={clients}"]
        run_config = {"overrides": " ".join(options), "output-dir": f"{folder}/run"}
        run_job(InlineGrid(_ready_node(config), clients, 1), run_config, 1)


def plain_client(config: RunConfig, clients: int) -> None:
    """Do what a client does, plainly."""
    tokens = samples_of(config, load_model(config.model), 0, clients)
    baseline.client(Path(config.model.path), tokens, config.sparsity)


def plain_server(config: RunConfig, clients: int) -> None:
    """Do what a server does, plainly, with some masks."""
    shapes = load_model(config.model).layout.shapes()
    masks = [
        {
            f"model.layers.{block}.{name}": torch.rand(shape) < config.sparsity
            for block, named in enumerate(shapes)
            for name, shape in named.items()
        }
        for _ in range(clients)
    ]
    windows = evaluation_windows(config, load_model(config.model).tokenizer)[config.data.name]
    with tempfile.TemporaryDirectory(dir=Path(config.model.path).parent) as folder:
        baseline.server(Path(config.model.path), masks, config.sparsity, windows, Path(folder))


ROLES: dict[str, Callable[[RunConfig, int], None]] = {
    "client": client,
    "server": server,
    "plain-client": plain_client,
    "plain-server": plain_server,
}


def measured(role: str, model: Path, clients: int) -> dict[str, float]:
    """Play a role in this process; return its seconds and bytes."""
    config = config_from_overrides(settings(str(model)))
    before, started = int(psutil.Process().memory_info().rss), time.monotonic()
    ROLES[role](config, clients)
    seconds = time.monotonic() - started
    return {"seconds": seconds, "imports_bytes": before, "peak_bytes": _peak()}


def main(arguments: list[str]) -> None:
    role, model, clients = arguments
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(measured(role, Path(model), int(clients))) + "\n")


def _ready_node(config: RunConfig) -> Callable[[Message, Context], Message]:
    shapes = load_model(config.model).layout.shapes()

    @lru_cache(maxsize=1)
    def marks() -> Fingerprint:
        return fingerprint(load_model(config.model))

    def answer(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if message.metadata.message_type == "query.handshake":
            total = int(context.node_config["num-partitions"])
            hashes = (marks().config, marks().weights, source_digest())
            report = NodeReport(partition, total, "", *hashes, 1, SEQ_LEN, "cpu", 1, "", "")
            return Message(report_record(report), reply_to=message)
        if message.metadata.message_type != "train.prune":
            return Message(RecordDict(), reply_to=message)
        blocks = {
            block: encode_masks(
                {name: _mask(shape, partition + block) for name, shape in shapes[block].items()}
            )
            for block in read_order(message).blocks
        }
        return Message(prune_record(PruneReply(blocks, 0.0, 0, 0, SAMPLES), FORM), reply_to=message)

    return answer


def _mask(shape: tuple[int, int], seed: int) -> BitMask:
    """Return a mask that prunes half of every row; rows are shifts of one random row."""
    rows, columns = shape
    kept = np.random.default_rng(seed).permutation(columns) < columns - columns // 2
    row = np.packbits(kept, bitorder="little")
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([row, row]), len(row))
    return BitMask(windows[(np.arange(rows) * 7 + seed) % len(row)].reshape(-1), shape)


def _peak() -> int:
    """Return the peak of this process; the system's own figure begins with the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_rss_bytes()
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
