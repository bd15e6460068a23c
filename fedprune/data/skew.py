"""Partitions drawn by chance or by a size rule, with the partitioners of Flower Datasets.

Those work on the rows of a table. Here a row is a document's owner, and rows come in an order that
follows from the seed and the documents' keys, so that the outcome never depends on file order.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from fedprune.data.documents import Document
from fedprune.errors import DataError
from fedprune.seeds import derive_seed

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

SKEWS = ("iid", "linear", "square", "exponential", "natural", "dirichlet")
"""What `data.partition` may be here; 'by_group' is ours."""


@dataclass(frozen=True)
class Skew:
    """How documents are spread.

    Parameters
    ----------
    how : str
        One of `SKEWS`. 'iid': equal numbers up to one; 'linear', 'square', 'exponential': numbers
        that grow so with the partition id; 'natural': every owner is one client; 'dirichlet': each
        owner's documents are spread over the clients in shares drawn with ``alpha``.
    seed : int
        Seed of every draw.
    alpha : float
        Concentration of 'dirichlet': small gives a client few owners, large is close to 'iid'.
    """

    how: str
    seed: int
    alpha: float


class SkewedPartitions(Sequence[list[Document]]):
    """All clients' documents by partition id, each found when it is asked for.

    All clients together have each document exactly once.

    Parameters
    ----------
    documents : Sequence[Document]
        The whole corpus.
    num_partitions : int
        Number of clients.
    skew : Skew
        How documents are spread.

    Raises
    ------
    DataError
        If 'natural' has not one client for each owner; when a part is asked for, if a client is
        left without documents.
    """

    def __init__(self, documents: Sequence[Document], num_partitions: int, skew: Skew) -> None:
        # Imported here: takes two seconds (plotting libraries), and only these partitions need it.
        from datasets import Dataset

        self._skew = skew
        self._num_partitions = num_partitions
        self._ordered = sorted(documents, key=lambda d: (derive_seed(skew.seed, d.key), d.key))
        groups = sorted({document.group for document in self._ordered})
        owners = {group: number for number, group in enumerate(groups)}
        if skew.how == "natural" and len(owners) != num_partitions:
            raise DataError(
                "`data.partition` 'natural' makes every owner of texts one client: the texts have "
                f"{len(owners)} owners, and there are {num_partitions} clients. Set "
                f"`federation.num_clients` to {len(owners)}, or data.partition=by_group."
            )
        self._partitioner = _partitioner(num_partitions, skew)
        rows = range(len(self._ordered))
        self._partitioner.dataset = Dataset.from_dict(
            {"row": list(rows), "owner": [owners[document.group] for document in self._ordered]}
        )

    def __len__(self) -> int:
        """Return the number of clients."""
        return self._num_partitions

    @overload
    def __getitem__(self, index: int) -> list[Document]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[Document]]: ...

    def __getitem__(self, index: int | slice) -> list[Document] | list[list[Document]]:
        """Return the documents of a client."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        try:
            with warnings.catch_warnings():
                # It warns before each new draw; that the last one failed is told below.
                warnings.simplefilter("ignore")
                rows = self._partitioner.load_partition(range(len(self))[index])["row"]
        except ValueError as error:
            # All that is left to object to: some client, this or another, would get nothing.
            documents = len(self._ordered)
            raise _empty_client(documents, self._num_partitions, self._skew) from error
        return [self._ordered[row] for row in rows]


def _partitioner(num_partitions: int, skew: Skew) -> "Partitioner":
    from flwr_datasets.partitioner import (
        DirichletPartitioner,
        ExponentialPartitioner,
        GroupedNaturalIdPartitioner,
        IidPartitioner,
        LinearPartitioner,
        SquarePartitioner,
    )

    if skew.how == "dirichlet":
        return DirichletPartitioner(
            num_partitions=num_partitions,
            partition_by="owner",
            alpha=skew.alpha,
            min_partition_size=1,
            seed=derive_seed(skew.seed, "dirichlet"),
        )
    if skew.how == "natural":
        return GroupedNaturalIdPartitioner("owner", 1, mode="strict", sort_unique_ids=True)
    by_size = {
        "iid": IidPartitioner,
        "linear": LinearPartitioner,
        "square": SquarePartitioner,
        "exponential": ExponentialPartitioner,
    }
    return by_size[skew.how](num_partitions=num_partitions)


def _empty_client(documents: int, num_partitions: int, skew: Skew) -> DataError:
    other = "raise `data.alpha`, " if skew.how == "dirichlet" else ""
    drawn = f" with `data.alpha` {skew.alpha:g}" if skew.how == "dirichlet" else ""
    return DataError(
        f"`data.partition` '{skew.how}'{drawn} leaves a client without documents: {documents} for "
        f"{num_partitions} clients. Give more texts (`data.path`), {other}start fewer clients "
        "(`federation.num_clients`), or choose another `data.partition`."
    )
