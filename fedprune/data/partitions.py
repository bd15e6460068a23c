"""Sharing one corpus among simulated clients: every document goes to exactly one of them.

A partition depends on the documents, their number and the seed alone, so each process can compute
its own without asking the others. What all clients of a process have in common is done once.
Partitions by chance or by a size rule are those of Flower Datasets, whose partitioners work on the
rows of a table: here a row is a document's owner, and rows come in an order that follows from the
seed and the documents' keys.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from fedprune.data.documents import Document
from fedprune.errors import DataError
from fedprune.seeds import derive_seed

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


def partition_documents(
    documents: Sequence[Document],
    num_partitions: int,
    partition_id: int,
    how: str,
    seed: int,
    alpha: float = 1.0,
) -> list[Document]:
    """Return one client's documents.

    `documents`: the whole corpus. The same object must not change between two calls.
    `num_partitions`, `partition_id`: number of clients, and which of them, from 0. `how`:
    'by_group': whole groups, balanced by characters; naturally non-IID. With more clients than
    groups the large groups are shared by several clients. 'iid': equal numbers up to one; 'linear',
    'square', 'exponential': numbers that grow so with the partition id; 'natural': every owner is
    one client; 'dirichlet': each owner's documents are spread over the clients in shares drawn with
    ``alpha``: small gives a client few owners, large is close to 'iid'. `seed`: seed of all draws;
    'by_group' has no chance in it. Raises DataError if the numbers do not fit each other or the
    documents, or a client is left without documents.
    """
    if num_partitions < 1 or not 0 <= partition_id < num_partitions:
        raise DataError(
            "`partition-id` must be at least 0 and below `num-partitions` (node_config), "
            f"got {partition_id} of {num_partitions}."
        )
    if len(documents) < num_partitions:
        raise DataError(
            f"{len(documents)} documents cannot be shared by {num_partitions} clients. "
            "Give more texts (`data.path`) or start fewer clients (`federation.num_clients`)."
        )
    if num_partitions == 1:
        return list(documents)
    if how == "by_group":  # seed and concentration tell nothing apart
        seed, alpha = 0, 1.0
    return list(_partitions(_Corpus(documents), num_partitions, how, seed, alpha)(partition_id))


class _Corpus:
    """Documents that are equal to nothing but themselves: comparing them would take as long."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents

    def __hash__(self) -> int:
        return id(self.documents)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Corpus) and self.documents is other.documents


@lru_cache(maxsize=1)
def _partitions(
    corpus: _Corpus, num_partitions: int, how: str, seed: int, alpha: float
) -> Callable[[int], list[Document]]:
    """Return what finds a client's documents when it is asked for."""
    if how == "by_group":
        return _by_group(corpus.documents, num_partitions).__getitem__
    # Imported here: takes two seconds (plotting libraries), and only these partitions need it.
    from datasets import Dataset

    ordered = sorted(corpus.documents, key=lambda d: (derive_seed(seed, d.key), d.key))
    groups = sorted({document.group for document in ordered})
    owners = {group: number for number, group in enumerate(groups)}
    if how == "natural" and len(owners) != num_partitions:
        raise DataError(
            "`data.partition` 'natural' makes every owner of texts one client: the texts have "
            f"{len(owners)} owners, and there are {num_partitions} clients. Set "
            f"`federation.num_clients` to {len(owners)}, or data.partition=by_group."
        )
    partitioner = _partitioner(num_partitions, how, seed, alpha)
    partitioner.dataset = Dataset.from_dict(
        {"row": list(range(len(ordered))), "owner": [owners[one.group] for one in ordered]}
    )

    def part(number: int) -> list[Document]:
        try:
            with warnings.catch_warnings():
                # It warns before each new draw; that the last one failed is told below.
                warnings.simplefilter("ignore")
                rows = partitioner.load_partition(number)[:]["row"]
        except ValueError as error:
            # All that is left to object to: some client, this or another, would get nothing.
            drawn, other = "", ""
            if how == "dirichlet":
                drawn, other = f" with `data.alpha` {alpha:g}", "raise `data.alpha`, "
            raise DataError(
                f"`data.partition` '{how}'{drawn} leaves a client without documents: "
                f"{len(ordered)} for {num_partitions} clients. Give more texts (`data.path`), "
                f"{other}start fewer clients (`federation.num_clients`), or choose another "
                "`data.partition`."
            ) from error
        return [ordered[row] for row in rows]

    return part


def _partitioner(num_partitions: int, how: str, seed: int, alpha: float) -> "Partitioner":
    from flwr_datasets import partitioner

    if how == "dirichlet":
        return partitioner.DirichletPartitioner(
            num_partitions=num_partitions,
            partition_by="owner",
            alpha=alpha,
            min_partition_size=1,
            seed=derive_seed(seed, "dirichlet"),
        )
    if how == "natural":
        return partitioner.GroupedNaturalIdPartitioner(
            "owner", 1, mode="strict", sort_unique_ids=True
        )
    by_size = {
        "iid": partitioner.IidPartitioner,
        "linear": partitioner.LinearPartitioner,
        "square": partitioner.SquarePartitioner,
        "exponential": partitioner.ExponentialPartitioner,
    }
    return by_size[how](num_partitions=num_partitions)


def _by_group(documents: Sequence[Document], num_partitions: int) -> list[list[Document]]:
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group, []).append(document)
    ordered = sorted(groups.items(), key=lambda item: (-_size(item[1]), item[0]))
    bundles = [bundle for _, bundle in ordered]
    if len(bundles) < num_partitions:
        shares = _shares(bundles, num_partitions)
        return [
            part
            for bundle, count in zip(bundles, shares, strict=True)
            for part in _slices(bundle, count)
        ]
    # Largest group first, each to the client that has least: within 4/3 of the best balance.
    clients: list[list[Document]] = [[] for _ in range(num_partitions)]
    loads = [0] * num_partitions
    for bundle in bundles:
        target = loads.index(min(loads))
        clients[target].extend(bundle)
        loads[target] += _size(bundle)
    return clients


def _size(documents: Sequence[Document]) -> int:
    return sum(len(document.text) for document in documents)


def _shares(bundles: Sequence[Sequence[Document]], total: int) -> list[int]:
    """Return how many clients share each group: one each, the rest to the largest average."""
    sizes = [_size(bundle) for bundle in bundles]
    shares = [1] * len(bundles)
    for _ in range(total - len(bundles)):
        open_ = [index for index, bundle in enumerate(bundles) if shares[index] < len(bundle)]
        shares[max(open_, key=lambda index: sizes[index] / shares[index])] += 1
    return shares


def _slices(documents: Sequence[Document], count: int) -> list[list[Document]]:
    """Cut a group into ``count`` consecutive parts of about equal characters, none empty."""
    parts: list[list[Document]] = []
    start, left = 0, _size(documents)
    for remaining in range(count, 1, -1):
        stop, taken = start + 1, len(documents[start].text)
        # Stop when the next document would overshoot by more than stopping now falls short.
        while len(documents) - stop >= remaining and (
            taken + len(documents[stop].text) / 2 <= left / remaining
        ):
            taken += len(documents[stop].text)
            stop += 1
        parts.append(list(documents[start:stop]))
        start, left = stop, left - taken
    return [*parts, list(documents[start:])]
