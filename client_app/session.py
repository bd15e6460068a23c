"""A node's work: load, sample, prune block by block, keep what the next message needs on disk.

In a deployment every message is a fresh process, in a simulation many nodes share one. So the
model is cached per process and shared (it is never changed for good), while everything that
belongs to one node lies in its scratch folder.
"""

import os
import time
from functools import lru_cache

import torch

from client_app.scratch import Scratch
from client_app.seat import Seat
from fedprune.config import DataConfig, ModelConfig, RunConfig
from fedprune.data.documents import Document
from fedprune.data.partitions import partition_documents
from fedprune.data.samples import calibration_samples
from fedprune.data.sources import load_documents
from fedprune.errors import FedpruneError
from fedprune.evaluation.perplexity import perplexity, token_windows
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import LoadedModel, load_model
from fedprune.models.masking import masked
from fedprune.pruning.driver import BlockWalk, prune_blocks
from fedprune.pruning.pruners import get_pruner
from fedprune.pruning.spec import MaskSpec
from fedprune.records import LocalResult, NodeReport, PruneReply
from fedprune.reporting.machine import peak_device_bytes, peak_rss_bytes, versions
from fedprune.reporting.sources import source_digest
from fedprune.seeds import derive_seed
from fedprune.wire.bitmask import BitMask
from fedprune.wire.block import encode_block


def report(config: RunConfig, seat: Seat) -> NodeReport:
    """Say what this node has; a problem is part of the report, so that it is told by name."""
    hashes, samples, problem = Fingerprint("", "", ""), 0, ""
    device = ""
    Scratch.sweep(seat.scratch)
    try:
        device = str(pick_device(config.pruner.device))
        hashes = _fingerprint(config.model, _model_path(seat))
        samples = len(_samples(config, seat))
    except FedpruneError as error:
        problem = str(error)
    return NodeReport(
        partition_id=seat.partition_id,
        num_partitions=seat.num_partitions,
        site=seat.site,
        config_hash=hashes.config,
        weights_hash=hashes.weights,
        code_hash=source_digest(),
        samples=samples,
        tokens=samples * config.pruner.seq_len,
        device=device,
        memory_bytes=_memory_bytes(device),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
        problem=problem,
    )


def prune(config: RunConfig, seat: Seat, blocks: range) -> PruneReply:
    """Prune consecutive blocks, going on from where this node's last message stopped.

    Parameters
    ----------
    config : RunConfig
        The run's configuration as the server sent it.
    seat : Seat
        This node.
    blocks : range
        Block indices to prune.
    """
    started = time.monotonic()
    loaded = _model(config.model, _model_path(seat))
    scratch = Scratch(seat.scratch)
    samples = _samples(config, seat)
    hidden = scratch.load_hidden(blocks.start) if blocks.start else None
    device = pick_device(config.pruner.device)
    walk = BlockWalk(loaded, samples, device, hidden=hidden, start=blocks.start)
    spec = MaskSpec(config.sparsity, config.pruner.pattern, config.pruner.group)
    encoded: dict[int, bytes] = {}
    for block, masks in prune_blocks(walk, blocks, get_pruner(config.pruner.name), spec):
        encoded[block] = encode_block(masks)
        if config.evaluation.local_only:
            scratch.save_masks(block, encoded[block])
    if blocks.stop < len(loaded.layout.blocks):
        scratch.save_hidden(blocks.stop, walk.hidden)
    elif not config.evaluation.local_only:
        scratch.remove()
    return PruneReply(
        blocks=encoded,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        peak_device_bytes=peak_device_bytes(),
        num_examples=len(samples),
    )


def evaluate_local(config: RunConfig, seat: Seat) -> LocalResult:
    """Measure the perplexity of this node's own pruned model on the held-out texts."""
    loaded = _model(config.model, _model_path(seat))
    scratch = Scratch(seat.scratch)
    masks: dict[int, dict[str, BitMask]] = {}
    for block in range(len(loaded.layout.blocks)):
        shapes = {name: ref.shape for name, ref in loaded.layout.linears(block).items()}
        masks[block] = scratch.load_masks(block, shapes)
    documents = load_documents(config.data, "heldout", seat.settings)
    chosen = config.evaluation
    windows = token_windows(documents, loaded.tokenizer, chosen.seq_len, chosen.max_windows)
    with masked(loaded, masks):
        found = perplexity(loaded.model, windows, pick_device(config.pruner.device))
    scratch.remove()
    return LocalResult(nll=found.nll, tokens=found.tokens)


def pick_device(wanted: str) -> torch.device:
    """Return the device to compute on: as configured, or the accelerator if there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def _model_path(seat: Seat) -> str | None:
    path = seat.settings.get("model-path")
    return str(path) if path else None


@lru_cache(maxsize=1)
def _model(config: ModelConfig, path: str | None) -> LoadedModel:
    return load_model(config, path)


@lru_cache(maxsize=1)
def _fingerprint(config: ModelConfig, path: str | None) -> Fingerprint:
    return fingerprint(_model(config, path))


@lru_cache(maxsize=4)
def _documents(config: DataConfig, settings: tuple[tuple[str, str], ...]) -> list[Document]:
    return load_documents(config, "train", dict(settings))


def _samples(config: RunConfig, seat: Seat) -> list[torch.Tensor]:
    loaded = _model(config.model, _model_path(seat))
    settings = tuple(sorted((key, str(value)) for key, value in seat.settings.items()))
    # Only a node's own folder depends on who it is; all others are read once a process.
    documents = _documents(config.data, settings if config.data.source == "node" else ())
    if config.data.source != "node":
        documents = partition_documents(
            documents,
            max(1, seat.num_partitions),
            seat.partition_id,
            config.data.partition,
            derive_seed(config.seed, "partition"),
        )
    return calibration_samples(
        documents,
        loaded.tokenizer,
        config.pruner.num_calibration_samples,
        config.pruner.seq_len,
        derive_seed(config.seed, "calibration", seat.partition_id),
    )


def _memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
