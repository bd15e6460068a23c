"""A node's own texts: what it calibrates on and is evaluated on, each read once a process."""

from functools import lru_cache

import torch

from client_app.model import dense_model, model_at, model_path
from client_app.node import NodeContext
from fedprune.config import DataConfig, RunConfig, replace
from fedprune.data.clients import client_samples, heldout_shares
from fedprune.data.documents import Document
from fedprune.data.samples import Sample
from fedprune.data.texts import OwnTexts, load_documents
from fedprune.errors import DataError
from fedprune.evaluation.perplexity import evaluation_windows, token_windows


def own_documents(config: RunConfig, node: NodeContext) -> list[Document]:
    """Return this node's own texts to calibrate on; none where nodes share a corpus.

    Raises DataError if they cannot be read.
    """
    texts = node.settings.texts(config.data)
    return [] if texts is None else _documents(config.data, texts)


@lru_cache(maxsize=4)
def _documents(config: DataConfig, texts: OwnTexts | None) -> list[Document]:
    return load_documents(config, "train", texts)


def windows(config: RunConfig, node: NodeContext) -> dict[str, torch.Tensor]:
    """Return label -> windows of the held-out texts that this node is evaluated on."""
    texts = node.settings.texts(config.data)
    return _windows(_neutral(config), model_path(config.model, node), texts)


def _neutral(config: RunConfig) -> RunConfig:
    """Return the configuration without what changes from one round to the next."""
    allocation = replace(config.allocation, name="uniform", blocks="", linears="")
    return replace(config, sparsity=0.0, allocation=allocation)


@lru_cache(maxsize=1)
def _windows(
    config: RunConfig, path: str | None, texts: OwnTexts | None
) -> dict[str, torch.Tensor]:
    return evaluation_windows(config, model_at(config.model, path).tokenizer, texts)


def own_windows(config: RunConfig, node: NodeContext) -> torch.Tensor | None:
    """Return windows of the held-out texts that are this node's own; None if they fill none."""
    documents = _own_heldout(config, node)
    tokenizer, chosen = dense_model(config, node).tokenizer, config.evaluation
    try:
        return token_windows(
            documents, tokenizer, chosen.seq_len, chosen.max_windows, config.data.joiner
        )
    except DataError:
        return None


def _own_heldout(config: RunConfig, node: NodeContext) -> list[Document]:
    if config.data.source == "node":
        return load_documents(config.data, "heldout", node.settings.texts(config.data))
    return _shares(_neutral(config), max(1, node.settings.num_partitions))[
        node.settings.partition_id
    ]


@lru_cache(maxsize=1)
def _shares(config: RunConfig, num_partitions: int) -> list[list[Document]]:
    heldout = load_documents(config.data, "heldout")
    return heldout_shares(config, _documents(config.data, None), heldout, num_partitions)


def samples(config: RunConfig, node: NodeContext) -> list[Sample]:
    """Return this node's calibration samples, as many as its operator lets it use."""
    texts = node.settings.texts(config.data)
    place = (node.settings.partition_id, node.settings.num_partitions, node.settings.max_samples)
    return _drawn(_neutral(config), model_path(config.model, node), place, texts)


@lru_cache(maxsize=64)
def _drawn(
    config: RunConfig,
    path: str | None,
    place: tuple[int, int, int | None],
    texts: OwnTexts | None,
) -> list[Sample]:
    # Kept from one message to the next: sharing a corpus and tokenising take a while.
    documents = _documents(config.data, texts)
    return client_samples(config, documents, model_at(config.model, path).tokenizer, *place)


def tokens(config: RunConfig, node: NodeContext) -> list[torch.Tensor]:
    """Return this node's calibration samples, each int64 of shape (seq_len,)."""
    return [sample.tokens for sample in samples(config, node)]
