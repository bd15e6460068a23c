"""The texts of a run: which source they come from and which part is kept apart for evaluation.

What decides a document's part is a hash of its key, never its place: a corpus that grows keeps its
split, and every process finds the same one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedprune.config import DataConfig
from fedprune.data.documents import Document, break_before
from fedprune.data.files import FileQuery, file_documents
from fedprune.data.hub import HubSplit, hub_documents
from fedprune.data.stdlib import stdlib_documents
from fedprune.errors import DataError

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class OwnTexts:
    """Where a node's own texts are, as its operator said in ``--node-config``."""

    path: str | None = None  # ``data-path``: a file or folder, which `data.source` 'node' needs
    # text_key, glob: in place of `data.text_key` and `data.glob`
    text_key: str | None = None
    glob: str | None = None


def load_documents(
    config: DataConfig, split: Split, node: OwnTexts | None = None
) -> list[Document]:
    """Return the documents to calibrate on ("train") or to evaluate on ("heldout").

    The two never share a document. Held-out texts are, in this order: `data.heldout_path`;
    `data.heldout_split` of a hub data set; the share `data.heldout_fraction` of the documents, at
    least one (a single document gives up its end). `data.heldout_documents` limits them. A node
    with texts of its own always keeps the share apart, since `data.heldout_path` lies beside the
    server.

    `config`: the section `data`. `node`: what the node's operator named; with source 'node' it must
    have a path. None on the server, and where all nodes read the same. Raises DataError if the
    texts cannot be had.
    """
    if split == "heldout":
        return _heldout(config, node)[: config.heldout_documents]
    return _train(config, node)


def _train(config: DataConfig, node: OwnTexts | None) -> list[Document]:
    if config.source == "stdlib":
        return stdlib_documents("train")[: config.max_documents]
    documents = _documents(config, node)
    own = config.source == "node" and node is not None
    apart = config.heldout_path is not None or (
        config.source == "hub" and config.heldout_split is not None
    )
    if apart and not own:
        return documents
    return split_documents(documents, config.heldout_fraction)[0]


def _heldout(config: DataConfig, node: OwnTexts | None) -> list[Document]:
    own = config.source == "node" and node is not None
    if config.heldout_path is not None and not own:
        query = _query(config, config.heldout_path, "`data.heldout_path`")
        return file_documents(query)[: config.max_documents]
    if config.source == "stdlib":
        return stdlib_documents("heldout")[: config.max_documents]
    if config.source == "hub" and config.heldout_split is not None:
        limit = config.heldout_documents or config.max_documents
        return hub_documents(config, HubSplit(config.heldout_split, config.heldout_file, limit))
    return split_documents(_documents(config, node), config.heldout_fraction)[1]


def split_documents(
    documents: Sequence[Document], fraction: float
) -> tuple[list[Document], list[Document]]:
    """Return (train, heldout), both non-empty, disjoint, in the given order.

    About ``fraction`` of the documents are held out, chosen by the SHA-256 of their keys; equal
    texts are all held out or none, as the first of their keys says. If that leaves a part empty,
    the text that came closest changes sides; a single text is cut.

    Raises DataError if there is no text to split.
    """
    if not documents:
        raise DataError("There are no documents to calibrate or evaluate on. Check `data.path`.")
    first: dict[str, str] = {}
    for document in documents:
        first[document.text] = min(document.key, first.get(document.text, document.key))
    if len(first) == 1:
        return _cut_in_two(documents[0], fraction)
    ranks = [_rank(first[document.text]) for document in documents]
    held = [rank < fraction for rank in ranks]
    if not any(held):
        held = [rank == min(ranks) for rank in ranks]
    if all(held):
        held = [rank != max(ranks) for rank in ranks]
    train = [document for document, out in zip(documents, held, strict=True) if not out]
    heldout = [document for document, out in zip(documents, held, strict=True) if out]
    return train, heldout


def _rank(key: str) -> float:
    """Return a number in [0, 1) that looks random and depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _cut_in_two(document: Document, fraction: float) -> tuple[list[Document], list[Document]]:
    text = document.text
    if len(text) < 2:
        raise DataError(
            "One document of one character cannot be split into texts to calibrate and to evaluate "
            "on. Give more text, or set `data.heldout_path`."
        )
    target = min(max(round(len(text) * (1 - fraction)), 1), len(text) - 1)
    stop = break_before(text, target - target // 4, target)
    train = replace(document, text=text[:stop], key=f"{document.key}/train")
    return [train], [replace(document, text=text[stop:], key=f"{document.key}/heldout")]


def _documents(config: DataConfig, node: OwnTexts | None) -> list[Document]:
    if config.source == "hub":
        return hub_documents(
            config, HubSplit(config.split, config.split_file, config.max_documents)
        )
    if config.source == "node":
        return file_documents(_node_query(config, node))[: config.max_documents]
    query = _query(config, config.path, "`data.path`")
    query = replace(query, excluded=config.heldout_path)
    return file_documents(query)[: config.max_documents]


def _query(config: DataConfig, path: str, origin: str) -> FileQuery:
    return FileQuery(
        path=path,
        origin=origin,
        text_key=config.text_key,
        group_key=config.group_key,
        glob=config.glob,
        whole=config.whole_documents,
    )


def _node_query(config: DataConfig, node: OwnTexts | None) -> FileQuery:
    if node is None:
        raise DataError(
            "With `data.source` 'node' the server has no texts. "
            "Set `data.heldout_path` to a file or folder beside the ServerApp."
        )
    if not node.path:
        raise DataError(
            "node_config has no `data-path`, which `data.source` 'node' needs. Start the SuperNode "
            "with --node-config 'data-path=\"/path/to/texts\"', or choose other data."
        )
    query = _query(config, node.path, "node_config `data-path`")
    return replace(
        query,
        own=True,
        text_key=config.text_key if node.text_key is None else node.text_key,
        glob=config.glob if node.glob is None else node.glob,
    )
