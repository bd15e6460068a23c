"""Each client's calibration samples and held-out share of a corpus that all clients can read.

Nodes and the server's pooled baseline both come here, so that they mean the same samples.
"""

from collections.abc import Sequence

from fedprune.config import RunConfig
from fedprune.data.documents import Document
from fedprune.data.partitions import partition_documents
from fedprune.data.samples import Sample, Tokenizer, packed_samples, published_samples
from fedprune.seeds import derive_seed


def client_samples(
    config: RunConfig,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    partition_id: int,
    num_partitions: int,
    most: int | None = None,
) -> list[Sample]:
    """Return a client's `pruner.num_calibration_samples` samples; they follow from seed and id.

    `config`: `data.partition`, `data.alpha`, `data.sampling`, the pruner's sample keys and `seed`.
    `documents`: the whole corpus, or, with `data.source` 'node', what this client holds.
    `partition_id`, `num_partitions`: which client, of how many (0 if nobody said). `most`: the
    first so many samples only, if its operator allows no more. Raises DataError if the documents
    cannot be shared or are too few.
    """
    count, seq_len = config.pruner.num_calibration_samples, config.pruner.seq_len
    used = min(count, most or count)
    data, shared = config.data, config.data.source != "node"
    if shared and data.sampling == "published" and data.partition == "iid":
        # Published: all samples are drawn first, and clients get equal slices of them.
        numbers = range(partition_id * count, partition_id * count + used)
        seed = derive_seed(config.seed, "calibration")
        return published_samples(documents, tokenizer, numbers, seq_len, seed)
    if shared:
        documents = partition_documents(
            documents,
            max(1, num_partitions),
            partition_id,
            data.partition,
            derive_seed(config.seed, "partition"),
            data.alpha,
        )
    seed = derive_seed(config.seed, "calibration", partition_id)
    if data.sampling == "published":
        return published_samples(documents, tokenizer, range(used), seq_len, seed)
    return packed_samples(documents, tokenizer, used, seq_len, seed)


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

    `config`: `data.partition`, `data.alpha` and `seed`. `train`: the whole corpus that clients
    share to calibrate on. `heldout`: what none of them calibrates on. Returns by partition id, each
    in the given order; empty for a client that came away with nothing. Raises DataError if the
    documents to calibrate on cannot be shared.
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
