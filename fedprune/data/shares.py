"""Sharing the held-out texts of one corpus: each client is measured on texts of its own kind."""

from collections.abc import Sequence

from fedprune.config import RunConfig
from fedprune.data.documents import Document
from fedprune.data.partitions import partition_documents
from fedprune.seeds import derive_seed


def heldout_shares(
    config: RunConfig,
    train: Sequence[Document],
    heldout: Sequence[Document],
    num_partitions: int,
) -> list[list[Document]]:
    """Return each client's held-out documents; every document goes to exactly one client.

    A document goes to one of the clients that calibrate on texts of the same owner, of an owner
    that nobody calibrates on to any client: the one that has least so far, measured by how much
    text it calibrates on. There is no chance in it beside that of the partition itself.

    Parameters
    ----------
    config : RunConfig
        `data.partition`, `data.alpha` and `seed`.
    train : sequence of Document
        The whole corpus that clients share to calibrate on.
    heldout : sequence of Document
        What none of them calibrates on.
    num_partitions : int
        Number of clients.

    Returns
    -------
    list of list of Document
        By partition id, each in the given order; empty for a client that came away with nothing.

    Raises
    ------
    DataError
        If the documents to calibrate on cannot be shared.
    """
    seed, data = derive_seed(config.seed, "partition"), config.data
    parts = [
        partition_documents(train, num_partitions, number, data.partition, seed, data.alpha)
        for number in range(num_partitions)
    ]
    weights = [sum(len(document.text) for document in part) for part in parts]
    owners: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        for group in {document.group for document in part}:
            owners.setdefault(group, []).append(number)
    given = [0] * num_partitions
    taker: dict[str, int] = {}
    # Largest first: what is left over then evens out.
    for document in sorted(heldout, key=lambda d: (-len(d.text), d.key)):
        size = len(document.text)
        options = owners.get(document.group, range(num_partitions))
        chosen = min(options, key=lambda number: ((given[number] + size) / weights[number], number))
        given[chosen] += size
        taker[document.key] = chosen
    shares: list[list[Document]] = [[] for _ in range(num_partitions)]
    for document in heldout:
        shares[taker[document.key]].append(document)
    return shares
