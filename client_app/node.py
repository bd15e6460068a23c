"""What a node has: the model, its texts and samples, each read once a process.

In a deployment every message is a fresh process, in a simulation many nodes share one. So the
model is cached per process and shared (it is never changed for good), while everything that
belongs to one node lies in its scratch folder.
"""

import os
from dataclasses import replace
from functools import lru_cache

import torch

from client_app.own_model import model_path
from client_app.seat import Seat
from fedprune.config import DataConfig, ModelConfig, RunConfig
from fedprune.data.clients import client_samples, heldout_shares
from fedprune.data.documents import Document
from fedprune.data.samples import Sample
from fedprune.data.texts import OwnTexts, load_documents
from fedprune.errors import DataError, ModelError
from fedprune.evaluation.perplexity import evaluation_windows, token_windows
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import LoadedModel, load_model, model_shapes


def model(config: RunConfig, seat: Seat) -> LoadedModel:
    """Return the dense model, which the nodes of a process share where it is the same."""
    return _model(config.model, model_path(config.model, seat))


@lru_cache(maxsize=1)
def _model(config: ModelConfig, path: str | None) -> LoadedModel:
    try:
        return load_model(config, path)
    except ModelError as error:
        if path is None:
            raise
        raise ModelError(str(error), outside=_without_path(error.outside, path)) from error


def _without_path(text: str, path: str) -> str:
    """Return a message without the place where a node keeps its model."""
    for folder in (os.path.expanduser(path), path):
        text = text.replace(f"'{folder}", "'<model-path>")
        if "/" in folder:  # else it may be any word
            text = text.replace(folder, "<model-path>")
    return text


def shapes(config: RunConfig, seat: Seat) -> list[dict[str, tuple[int, int]]]:
    """Return for each block of this node's model linear -> (d_out, d_in); no weight is read."""
    return _model_shapes(config.model, model_path(config.model, seat))


@lru_cache(maxsize=1)
def _model_shapes(config: ModelConfig, path: str | None) -> list[dict[str, tuple[int, int]]]:
    return model_shapes(config, path)


def model_fingerprint(config: RunConfig, seat: Seat) -> Fingerprint:
    """Return the fingerprint of this node's model."""
    return _fingerprint(config.model, model_path(config.model, seat))


@lru_cache(maxsize=1)
def _fingerprint(config: ModelConfig, path: str | None) -> Fingerprint:
    return fingerprint(_model(config, path))


def own_documents(config: RunConfig, seat: Seat) -> list[Document]:
    """Return this node's own texts to calibrate on; none where nodes share a corpus.

    Raises
    ------
    DataError
        If they cannot be read.
    """
    texts = seat.settings.texts(config.data)
    return [] if texts is None else _documents(config.data, texts)


@lru_cache(maxsize=4)
def _documents(config: DataConfig, texts: OwnTexts | None) -> list[Document]:
    return load_documents(config, "train", texts)


def windows(config: RunConfig, seat: Seat) -> dict[str, torch.Tensor]:
    """Return label -> windows of the held-out texts that this node is evaluated on."""
    texts = seat.settings.texts(config.data)
    return _windows(_neutral(config), model_path(config.model, seat), texts)


def _neutral(config: RunConfig) -> RunConfig:
    """Return the configuration without what changes from one round to the next."""
    allocation = replace(config.allocation, name="uniform", blocks="")
    return replace(config, sparsity=0.0, allocation=allocation)


@lru_cache(maxsize=1)
def _windows(
    config: RunConfig, path: str | None, texts: OwnTexts | None
) -> dict[str, torch.Tensor]:
    return evaluation_windows(config, _model(config.model, path).tokenizer, texts)


def own_windows(config: RunConfig, seat: Seat) -> torch.Tensor | None:
    """Return windows of the held-out texts that are this node's own; None if they fill none."""
    documents = _own_heldout(config, seat)
    tokenizer, chosen = model(config, seat).tokenizer, config.evaluation
    try:
        return token_windows(
            documents, tokenizer, chosen.seq_len, chosen.max_windows, config.data.joiner
        )
    except DataError:
        return None


def _own_heldout(config: RunConfig, seat: Seat) -> list[Document]:
    if config.data.source == "node":
        return load_documents(config.data, "heldout", seat.settings.texts(config.data))
    return _shares(_neutral(config), max(1, seat.num_partitions))[seat.partition_id]


@lru_cache(maxsize=1)
def _shares(config: RunConfig, num_partitions: int) -> list[list[Document]]:
    heldout = load_documents(config.data, "heldout")
    return heldout_shares(config, _documents(config.data, None), heldout, num_partitions)


def samples(config: RunConfig, seat: Seat) -> list[Sample]:
    """Return this node's calibration samples, as many as its operator lets it use."""
    texts = seat.settings.texts(config.data)
    place = (seat.partition_id, seat.num_partitions, seat.settings.max_samples)
    return _drawn(_neutral(config), model_path(config.model, seat), place, texts)


@lru_cache(maxsize=64)
def _drawn(
    config: RunConfig,
    path: str | None,
    place: tuple[int, int, int | None],
    texts: OwnTexts | None,
) -> list[Sample]:
    # Kept from one message to the next: sharing a corpus and tokenising take a while.
    documents = _documents(config.data, texts)
    return client_samples(config, documents, _model(config.model, path).tokenizer, *place)


def tokens(config: RunConfig, seat: Seat) -> list[torch.Tensor]:
    """Return this node's calibration samples, each int64 of shape (seq_len,)."""
    return [sample.tokens for sample in samples(config, seat)]
