"""One client's calibration samples out of a corpus that all clients can read, or of its own texts.

Nodes and the server's pooled baseline both come here, so that they mean the same samples.
"""

from collections.abc import Sequence

from fedprune.config import RunConfig
from fedprune.data.documents import Document
from fedprune.data.partitions import partition_documents
from fedprune.data.published import published_samples
from fedprune.data.samples import Sample, Tokenizer, packed_samples
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

    Parameters
    ----------
    config : RunConfig
        `data.partition`, `data.alpha`, `data.sampling`, the pruner's sample keys and `seed`.
    documents : sequence of Document
        The whole corpus, or, with `data.source` 'node', what this client holds.
    tokenizer : Tokenizer
        The model's tokenizer.
    partition_id, num_partitions : int
        Which client, of how many (0 if nobody said).
    most : int, optional
        The first so many samples only, if its operator allows no more.

    Raises
    ------
    DataError
        If the documents cannot be shared or are too few.
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
