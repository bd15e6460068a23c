"""Calibration samples as the pruning literature draws them: long documents, a window of each.

Every sample has a number and its own draws, so a client finds its own without making the others',
and any number of clients share the same samples.
"""

from collections.abc import Sequence

import torch

from fedprune.data.documents import Document
from fedprune.data.samples import Sample, Tokenizer
from fedprune.errors import DataError
from fedprune.seeds import derive_seed


def published_samples(
    documents: Sequence[Document], tokenizer: Tokenizer, numbers: range, seq_len: int, seed: int
) -> list[Sample]:
    """Return the samples of these numbers.

    For each, documents are drawn until one has more than ``seq_len`` tokens, special tokens
    included, and a window of it is drawn. Documents may repeat.

    Parameters
    ----------
    documents : sequence of Document
        What to draw from, whole; their order does not matter.
    tokenizer : Tokenizer
        The model's tokenizer.
    numbers : range
        Which samples, for example 4 to 6 for the third client of two samples each.
    seq_len : int
        `pruner.seq_len`.
    seed : int
        Seed of all samples together.

    Raises
    ------
    DataError
        If no document is longer than a sample.
    """
    ordered = sorted(documents, key=lambda document: document.key)
    short: set[int] = set()
    return [_sample(ordered, short, tokenizer, seq_len, derive_seed(seed, n)) for n in numbers]


def _sample(
    documents: Sequence[Document], short: set[int], tokenizer: Tokenizer, seq_len: int, seed: int
) -> Sample:
    attempt = 0
    while len(short) < len(documents):
        place = derive_seed(seed, "document", attempt) % len(documents)
        attempt += 1
        if place in short:
            continue
        document = documents[place]
        tokens = tokenizer.encode(document.text, add_special_tokens=True, verbose=False)
        if len(tokens) <= seq_len:
            short.add(place)
            continue
        start = derive_seed(seed, "window") % (len(tokens) - seq_len)
        return Sample(torch.tensor(tokens[start : start + seq_len]), document.key, start)
    raise DataError(
        f"`data.sampling` 'published' needs documents of more than `pruner.seq_len` {seq_len} "
        f"tokens, none of {len(documents)} has them. Lower `pruner.seq_len`, read more documents "
        "(`data.max_documents`, `data.path`), or set data.sampling=packed."
    )
