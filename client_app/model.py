"""Where a node has its model from: its operator's copy, the job's path, or the server."""

import os
from functools import lru_cache
from pathlib import Path

from client_app.model_store import ModelStore
from client_app.node import NodeContext
from client_app.scratch import Scratch
from fedprune.config import ModelConfig, PrunerConfig, RunConfig
from fedprune.errors import ModelError, ReplyRefusedError, WireError
from fedprune.models.fingerprint import Fingerprint, fingerprint
from fedprune.models.loading import LoadedModel, load_model, model_shapes
from fedprune.models.selection import select
from fedprune.models.transfer import Manifest
from fedprune.records import ModelSegment


def model_path(config: ModelConfig, node: NodeContext) -> str | None:
    """Return the folder of this node's model; None: where the job's configuration says.

    Raises ReplyRefusedError if the model that the server sent is not here any more.
    """
    if node.settings.model_path is not None:
        return node.settings.model_path
    if not _from_server(config):
        return None
    digest = Scratch(node.scratch).model()
    folder = _store(node).find(digest) if digest is not None else None
    if folder is None:
        raise ReplyRefusedError(
            "the server's model is not on this node any more: its FEDPRUNE_HOME was emptied. It "
            "can take part in the next run."
        )
    return str(folder)


def lacks_model(config: ModelConfig, node: NodeContext, digest: str) -> bool:
    """Return whether the server has to send the model before this node can load it.

    `config`: `source` says whether the server would. `node`: this node; its scratch folder notes
    which model the job is about. `digest`: the hash of the manifest of the server's model. Raises
    ModelError if it would have to, and the operator takes none.
    """
    if node.settings.model_path is not None or not _from_server(config):
        return False
    store = _store(node)
    store.heal(digest)
    if store.find(digest) is None:
        if not node.settings.most_model_bytes:
            raise ModelError(
                "`max-model-gb` in the node's --node-config is 0: it takes no model from a server. "
                "Give it its own copy, `model-path`, or raise the limit."
            )
        return True
    store.sweep(digest)
    Scratch(node.scratch).save_model(digest)
    return False


def take_model(node: NodeContext, part: ModelSegment) -> int:
    """Keep a part of a model and return how many of its segments are here.

    Raises FedpruneError if the part is refused, or there is no room for the model.
    """
    store = _store(node)
    if part.number >= 0:
        return store.add(part.digest, part.number, part.data)
    try:
        manifest = Manifest.read(part.data)
    except WireError as error:
        raise ReplyRefusedError(str(error)) from None
    if manifest.digest != part.digest:
        raise ReplyRefusedError("the manifest of the model is not the one that was announced.")
    return store.begin(manifest)


def _from_server(config: ModelConfig) -> bool:
    there = config.path != "" and Path(config.path).expanduser().is_dir()
    return config.source == "server" and not there


def _store(node: NodeContext) -> ModelStore:
    return ModelStore(node.settings.most_model_bytes)


def dense_model(config: RunConfig, node: NodeContext) -> LoadedModel:
    """Return the dense model with what the run prunes of it; nodes of a process share it."""
    path = model_path(config.model, node)
    return _selected(config.model, path, config.pruner)


@lru_cache(maxsize=1)
def _selected(config: ModelConfig, path: str | None, pruner: PrunerConfig) -> LoadedModel:
    return select(model_at(config, path), pruner)


@lru_cache(maxsize=1)
def model_at(config: ModelConfig, path: str | None) -> LoadedModel:
    """Return the dense model of a folder; None: where the configuration says."""
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


def block_shapes(config: RunConfig, node: NodeContext) -> list[dict[str, tuple[int, int]]]:
    """Return for each block of this node's model linear -> (d_out, d_in); no weight is read."""
    return _model_shapes(config.model, model_path(config.model, node))


@lru_cache(maxsize=1)
def _model_shapes(config: ModelConfig, path: str | None) -> list[dict[str, tuple[int, int]]]:
    return model_shapes(config, path)


def model_fingerprint(config: RunConfig, node: NodeContext) -> Fingerprint:
    """Return the fingerprint of this node's model."""
    return _fingerprint(config.model, model_path(config.model, node))


@lru_cache(maxsize=1)
def _fingerprint(config: ModelConfig, path: str | None) -> Fingerprint:
    return fingerprint(model_at(config, path))
