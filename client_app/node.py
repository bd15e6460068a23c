"""What a node has: the model, its texts and samples, each read once a process.

In a deployment every message is a fresh process, in a simulation many nodes share one. So the
model is cached per process and shared (it is never changed for good), while everything that
belongs to one node lies in its scratch folder.
"""

from dataclasses import replace
from functools import lru_cache

import torch

from client_app.resources import free_bytes, layer_permille, megaflops, memory_bytes
from client_app.scratch import Scratch
from client_app.seat import Seat
from fedprune.config import DataConfig, ModelConfig, RunConfig
from fedprune.data.clients import client_samples
from fedprune.data.documents import Document
from fedprune.data.samples import Sample
from fedprune.data.shares import heldout_shares
from fedprune.data.sources import load_documents
from fedprune.errors import DataError, FedpruneError
from fedprune.evaluation.perplexity import token_windows
from fedprune.evaluation.texts import evaluation_windows
from fedprune.models.device import pick_device
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loaded import LoadedModel
from fedprune.models.loading import load_model
from fedprune.records import NodeReport
from fedprune.reporting.machine import versions
from fedprune.reporting.sources import source_digest

Settings = tuple[tuple[str, str], ...]
"""A node's settings in a form that can be a key."""


def report(config: RunConfig, seat: Seat) -> NodeReport:
    """Say what this node has; a problem is part of the report, so that it is told by name."""
    hashes, problem = Fingerprint("", "", ""), ""
    found: list[Sample] = []
    device, share = "", 0
    Scratch(seat.scratch).sweep()
    try:
        share = layer_permille(seat.settings)
        device = str(pick_device(config.pruner.device))
        hashes = _fingerprint(config.model, model_path(seat))
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
        memory_bytes=memory_bytes(device),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
        problem=problem,
        sample_ids="" if config.data.source == "node" else ",".join(s.id for s in found),
        free_bytes=free_bytes(device),
        megaflops=megaflops(device) if config.strategy.layer_resources == "measured" else 0,
        layer_permille=share,
    )


def model_path(seat: Seat) -> str | None:
    """Return the folder of the node's own copy of the model, if its operator named one."""
    path = seat.settings.get("model-path")
    return str(path) if path else None


@lru_cache(maxsize=1)
def model(config: ModelConfig, path: str | None) -> LoadedModel:
    """Return the dense model that all nodes of this process share."""
    return load_model(config, path)


@lru_cache(maxsize=1)
def _fingerprint(config: ModelConfig, path: str | None) -> Fingerprint:
    return fingerprint(model(config, path))


def _own_settings(config: RunConfig, seat: Seat) -> Settings:
    """Return what decides which texts a node reads: nothing where all nodes read the same."""
    if config.data.source != "node":
        return ()
    return tuple(sorted((key, str(value)) for key, value in seat.settings.items()))


@lru_cache(maxsize=4)
def _documents(config: DataConfig, settings: Settings) -> list[Document]:
    return load_documents(config, "train", dict(settings))


def windows(config: RunConfig, seat: Seat) -> dict[str, torch.Tensor]:
    """Return label -> windows of the held-out texts that this node is evaluated on."""
    return _windows(_neutral(config), model_path(seat), _own_settings(config, seat))


def _neutral(config: RunConfig) -> RunConfig:
    """Return the configuration without what changes from one round to the next."""
    allocation = replace(config.allocation, name="uniform", blocks="")
    return replace(config, sparsity=0.0, allocation=allocation)


@lru_cache(maxsize=1)
def _windows(config: RunConfig, path: str | None, settings: Settings) -> dict[str, torch.Tensor]:
    return evaluation_windows(config, model(config.model, path).tokenizer, dict(settings))


def own_windows(config: RunConfig, seat: Seat) -> torch.Tensor | None:
    """Return windows of the held-out texts that are this node's own; None if they fill none."""
    documents = _own_heldout(config, seat)
    tokenizer, chosen = model(config.model, model_path(seat)).tokenizer, config.evaluation
    try:
        return token_windows(
            documents, tokenizer, chosen.seq_len, chosen.max_windows, config.data.joiner
        )
    except DataError:
        return None


def _own_heldout(config: RunConfig, seat: Seat) -> list[Document]:
    if config.data.source == "node":
        return load_documents(config.data, "heldout", seat.settings)
    return _shares(_neutral(config), max(1, seat.num_partitions))[seat.partition_id]


@lru_cache(maxsize=1)
def _shares(config: RunConfig, num_partitions: int) -> list[list[Document]]:
    heldout = load_documents(config.data, "heldout")
    return heldout_shares(config, _documents(config.data, ()), heldout, num_partitions)


def _samples(config: RunConfig, seat: Seat) -> list[Sample]:
    place = (seat.partition_id, seat.num_partitions)
    return _drawn(_neutral(config), model_path(seat), place, _own_settings(config, seat))


@lru_cache(maxsize=64)
def _drawn(
    config: RunConfig, path: str | None, place: tuple[int, int], settings: Settings
) -> list[Sample]:
    # Kept from one message to the next: sharing a corpus and tokenising take a while.
    documents = _documents(config.data, settings)
    return client_samples(config, documents, model(config.model, path).tokenizer, *place)


def tokens(config: RunConfig, seat: Seat) -> list[torch.Tensor]:
    """Return this node's calibration samples, each int64 of shape (seq_len,)."""
    return [sample.tokens for sample in _samples(config, seat)]
