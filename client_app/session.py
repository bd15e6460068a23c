"""A node's work: load, sample, prune block by block, keep what the next message needs on disk.

In a deployment every message is a fresh process, in a simulation many nodes share one. So the
model is cached per process and shared (it is never changed for good), while everything that
belongs to one node lies in its scratch folder.
"""

import os
import time
from collections.abc import Iterator
from functools import lru_cache

import torch

from client_app.scratch import Scratch
from client_app.seat import Seat
from client_app.update import check_request, read_update
from fedprune.config import DataConfig, ModelConfig, RunConfig
from fedprune.data.clients import client_samples
from fedprune.data.documents import Document
from fedprune.data.samples import Sample
from fedprune.data.sources import load_documents
from fedprune.errors import DataError, FedpruneError
from fedprune.evaluation.perplexity import perplexity
from fedprune.evaluation.texts import evaluation_windows
from fedprune.models.device import pick_device
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import LoadedModel, load_model
from fedprune.models.masking import masked
from fedprune.pruning.driver import BlockWalk, prune_block, prune_blocks
from fedprune.pruning.pruners import get_pruner
from fedprune.pruning.spec import block_specs
from fedprune.records import LocalResult, NodeReport, PruneReply
from fedprune.reporting.machine import peak_device_bytes, peak_rss_bytes, versions
from fedprune.reporting.sources import source_digest
from fedprune.wire.bitmask import BitMask
from fedprune.wire.block import encode_block

Settings = tuple[tuple[str, str], ...]
"""A node's settings in a form that can be a key."""


def report(config: RunConfig, seat: Seat) -> NodeReport:
    """Say what this node has; a problem is part of the report, so that it is told by name."""
    hashes, problem = Fingerprint("", "", ""), ""
    found: list[Sample] = []
    device = ""
    Scratch.sweep(seat.scratch)
    try:
        device = str(pick_device(config.pruner.device))
        hashes = _fingerprint(config.model, _model_path(seat))
        found = _samples(config, seat)
    except FedpruneError as error:
        problem = str(error)
    return NodeReport(
        partition_id=seat.partition_id,
        num_partitions=seat.num_partitions,
        site=seat.site,
        config_hash=hashes.config,
        weights_hash=hashes.weights,
        code_hash=source_digest(),
        samples=len(found),
        tokens=len(found) * config.pruner.seq_len,
        device=device,
        memory_bytes=_memory_bytes(device),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
        problem=problem,
        sample_ids="" if config.data.source == "node" else ",".join(s.id for s in found),
    )


def prune(config: RunConfig, seat: Seat, blocks: range, update: bytes | None) -> PruneReply:
    """Prune consecutive blocks, going on from where this node's last message stopped.

    Parameters
    ----------
    config : RunConfig
        The run's configuration as the server sent it.
    seat : Seat
        This node.
    blocks : range
        Block indices to prune.
    update : bytes or None
        What became of the block before, where the schedule is iterative.

    Raises
    ------
    FedpruneError
        If the request is wrong or the work fails. The node then forgets this run, since the
        server asks it no more.
    """
    started = time.monotonic()
    scratch = Scratch(seat.scratch)
    try:
        encoded, samples = _prune(config, seat, blocks, update)
    except Exception:
        scratch.remove()
        raise
    return PruneReply(
        blocks=encoded,
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        peak_device_bytes=peak_device_bytes(),
        num_examples=samples,
    )


def _prune(
    config: RunConfig, seat: Seat, blocks: range, update: bytes | None
) -> tuple[dict[int, bytes], int]:
    """Return the encoded masks by block, and how many samples made them."""
    loaded = _model(config.model, _model_path(seat))
    total, scratch = len(loaded.layout.blocks), Scratch(seat.scratch)
    check_request(config, blocks, total, update)
    samples = scratch.load_samples() if blocks.start else _tokens(config, seat)
    walk = _walk(config, seat, samples, blocks.start, update)
    encoded: dict[int, bytes] = {}
    for block, masks in _masks(config, walk, blocks, total):
        encoded[block] = encode_block(masks, config.pruner.pattern)
        if config.evaluation.local_only and not _iterative(config):
            scratch.save_masks(block, encoded[block])
    if blocks.stop < total:
        scratch.save_hidden(walk.position, walk.hidden)
        if blocks.start == 0:
            scratch.save_samples(samples)
    elif not config.evaluation.local_only:
        scratch.remove()
    return encoded, len(samples)


def _walk(
    config: RunConfig, seat: Seat, samples: list[torch.Tensor], start: int, update: bytes | None
) -> BlockWalk:
    """Return a walk that stands at block ``start``, on what this node kept and what it was told."""
    loaded = _model(config.model, _model_path(seat))
    scratch, device = Scratch(seat.scratch), pick_device(config.pruner.device)
    if update is None:
        hidden = scratch.load_hidden(start) if start else None
        return BlockWalk(loaded, samples, device, hidden=hidden, start=start)
    # Read before anything runs; the hidden states kept are the inputs of the block it is for.
    changes = read_update(config, start - 1, tuple(loaded.layout.shapes()), update)
    hidden = scratch.load_hidden(start - 1)
    walk = BlockWalk(loaded, samples, device, hidden=hidden, start=start - 1)
    if get_pruner(config.pruner.name).needs_inputs:
        walk.advance(changes)
    else:
        walk.skip()
    return walk


def _masks(
    config: RunConfig, walk: BlockWalk, blocks: range, total: int
) -> Iterator[tuple[int, dict[str, BitMask]]]:
    """Yield each block's masks; the walk goes on only where this node's own masks decide."""
    pruner, specs = get_pruner(config.pruner.name), block_specs(config, blocks, total)
    if _iterative(config):
        yield blocks.start, prune_block(walk, pruner, specs[blocks.start])
    else:
        yield from prune_blocks(walk, pruner, specs)


def _iterative(config: RunConfig) -> bool:
    return config.schedule.name == "iterative"


def evaluate_local(config: RunConfig, seat: Seat) -> LocalResult:
    """Measure the perplexity of this node's own pruned model on the held-out texts."""
    loaded = _model(config.model, _model_path(seat))
    scratch = Scratch(seat.scratch)
    try:
        masks = _own_masks(config, seat)
    finally:
        scratch.remove()
    windows = _windows(config, _model_path(seat), _own_settings(config, seat))
    if config.data.name not in windows:
        raise DataError(f"there is no text to evaluate on in '{config.data.name}'.")
    device = pick_device(config.pruner.device)
    with masked(loaded, masks):
        found = {label: perplexity(loaded.model, rows, device) for label, rows in windows.items()}
    own = found.pop(config.data.name)
    return LocalResult(own.nll, own.tokens, {label: one.nll for label, one in found.items()})


def _own_masks(config: RunConfig, seat: Seat) -> dict[int, dict[str, BitMask]]:
    """Return the masks of this node's own pruned model, made without the others."""
    loaded = _model(config.model, _model_path(seat))
    shapes = loaded.layout.shapes()
    if not _iterative(config):
        scratch = Scratch(seat.scratch)
        return {block: scratch.load_masks(block, named) for block, named in enumerate(shapes)}
    # Its masks of the rounds belong to the common model: it prunes once more, alone.
    walk = BlockWalk(loaded, _tokens(config, seat), pick_device(config.pruner.device))
    specs = block_specs(config, range(len(shapes)), len(shapes))
    return dict(prune_blocks(walk, get_pruner(config.pruner.name), specs))


def _model_path(seat: Seat) -> str | None:
    path = seat.settings.get("model-path")
    return str(path) if path else None


@lru_cache(maxsize=1)
def _model(config: ModelConfig, path: str | None) -> LoadedModel:
    return load_model(config, path)


@lru_cache(maxsize=1)
def _fingerprint(config: ModelConfig, path: str | None) -> Fingerprint:
    return fingerprint(_model(config, path))


def _own_settings(config: RunConfig, seat: Seat) -> Settings:
    """Return what decides which texts a node reads: nothing where all nodes read the same."""
    if config.data.source != "node":
        return ()
    return tuple(sorted((key, str(value)) for key, value in seat.settings.items()))


@lru_cache(maxsize=4)
def _documents(config: DataConfig, settings: Settings) -> list[Document]:
    return load_documents(config, "train", dict(settings))


@lru_cache(maxsize=1)
def _windows(config: RunConfig, path: str | None, settings: Settings) -> dict[str, torch.Tensor]:
    return evaluation_windows(config, _model(config.model, path).tokenizer, dict(settings))


def _samples(config: RunConfig, seat: Seat) -> list[Sample]:
    place = (seat.partition_id, seat.num_partitions)
    return _drawn(config, _model_path(seat), place, _own_settings(config, seat))


@lru_cache(maxsize=64)
def _drawn(
    config: RunConfig, path: str | None, place: tuple[int, int], settings: Settings
) -> list[Sample]:
    # Kept from one message to the next: sharing a corpus and tokenising take a while.
    documents = _documents(config.data, settings)
    return client_samples(config, documents, _model(config.model, path).tokenizer, *place)


def _tokens(config: RunConfig, seat: Seat) -> list[torch.Tensor]:
    return [sample.tokens for sample in _samples(config, seat)]


def _memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
