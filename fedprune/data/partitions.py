"""Sharing one corpus among simulated clients: every document goes to exactly one of them.

A partition depends on the documents, their number and the seed alone, so each process can compute
its own without asking the others. What all clients of a process have in common is done once.
"""

from collections.abc import Sequence
from functools import lru_cache

from fedprune.data.documents import Document
from fedprune.data.skew import SKEWS, Skew, SkewedPartitions
from fedprune.errors import DataError

HOWS = ("by_group", *SKEWS)
"""What `data.partition` may be."""


def partition_documents(
    documents: Sequence[Document],
    num_partitions: int,
    partition_id: int,
    how: str,
    seed: int,
    alpha: float = 1.0,
) -> list[Document]:
    """Return one client's documents.

    Parameters
    ----------
    documents : sequence of Document
        The whole corpus. The same object must not change between two calls.
    num_partitions, partition_id : int
        Number of clients, and which of them, from 0.
    how : str
        'by_group': whole groups, balanced by characters; naturally non-IID. With more clients than
        groups the large groups are shared by several clients. Else one of
        :data:`fedprune.data.skew.SKEWS`, which :class:`fedprune.data.skew.Skew` explains.
    seed : int
        Seed of all draws; 'by_group' has no chance in it.
    alpha : float
        Concentration of 'dirichlet'.

    Raises
    ------
    DataError
        If the numbers do not fit each other or the documents.
    """
    if num_partitions < 1 or not 0 <= partition_id < num_partitions:
        raise DataError(
            "`partition-id` must be at least 0 and below `num-partitions` (node_config), "
            f"got {partition_id} of {num_partitions}."
        )
    if how not in HOWS:
        names = ", ".join(repr(name) for name in HOWS)
        raise DataError(f"`data.partition` must be one of {names}, got '{how}'.")
    if len(documents) < num_partitions:
        raise DataError(
            f"{len(documents)} documents cannot be shared by {num_partitions} clients. "
            "Give more texts (`data.path`) or start fewer clients (`federation.num_clients`)."
        )
    if num_partitions == 1:
        return list(documents)
    skew = None if how == "by_group" else Skew(how, seed, alpha)
    return list(_partitions(_Corpus(documents), num_partitions, skew)[partition_id])


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
    corpus: _Corpus, num_partitions: int, skew: Skew | None
) -> Sequence[list[Document]]:
    """Return all clients' documents; by group where there is no skew."""
    if skew is None:
        return _by_group(corpus.documents, num_partitions)
    return SkewedPartitions(corpus.documents, num_partitions, skew)


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
