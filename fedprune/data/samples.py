"""Calibration samples: equally long token sequences out of a client's documents.

Packed samples use no token twice; published ones are drawn as the pruning literature does, a window
of a long document each. Order and places follow from the seed and the documents' keys by hashing,
so that they are the same in every process and whatever the order of the documents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from fedprune.data.documents import Document
from fedprune.errors import DataError
from fedprune.seeds import derive_seed


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    @property
    def eos_token_id(self) -> int | None:
        """Token that ends a text, if there is one."""

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
        """Return the tokens of a text."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A calibration sample and where it was taken."""

    tokens: Tensor  # int64, shape (seq_len,)
    key: str  # key of the document it starts in
    offset: int  # tokens of that document before it

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits that name the place and hold no text."""
        return sha256(f"{self.key}@{self.offset}".encode()).hexdigest()[:16]


def packed_samples(
    documents: Sequence[Document], tokenizer: Tokenizer, count: int, seq_len: int, seed: int
) -> list[Sample]:
    """Return ``count`` samples of ``seq_len`` tokens, reading no more documents than it takes.

    Documents come in an order drawn by the seed. One of at least ``seq_len`` tokens gives a window
    at a random place; shorter ones are joined by the tokenizer's EOS token, if it has one, and cut.
    When all documents have been used once, the long ones give the rest of their windows, and at
    last what lies before and after the windows is joined like short documents.

    `count`, `seq_len`: `pruner.num_calibration_samples` and `pruner.seq_len`. Raises DataError if
    the documents have too few tokens.
    """
    draw = _Draw(tokenizer, seq_len, seed)
    samples = list(islice(draw.samples(documents), count))
    if len(samples) < count:
        raise DataError(
            f"Calibration needs {count} samples of {seq_len} tokens ({count * seq_len} tokens), "
            f"but these {len(documents)} documents have {draw.tokens} tokens, enough for "
            f"{len(samples)}. Lower `pruner.num_calibration_samples` or `pruner.seq_len`, give "
            "this client more text (`data.path`, a node's own `data-path`), or start fewer clients."
        )
    return samples


@dataclass(frozen=True)
class _Piece:
    """Tokens of a document from an offset on."""

    tokens: list[int]
    key: str
    offset: int

    def sample(self, start: int, seq_len: int) -> Sample:
        tokens = torch.tensor(self.tokens[start : start + seq_len])
        return Sample(tokens, self.key, self.offset + start)


class _Draw:
    """One pass over documents; counts the tokens it has read."""

    def __init__(self, tokenizer: Tokenizer, seq_len: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._seed = seed
        self._pending: list[int] = []
        self._sources: list[tuple[str, int]] = []  # of every pending token: key and offset
        self.tokens = 0

    def samples(self, documents: Sequence[Document]) -> Iterator[Sample]:
        """Yield samples until the tokens run out."""
        order = sorted(documents, key=lambda d: (derive_seed(self._seed, "order", d.key), d.key))
        windows: list[Sample] = []
        margins: list[_Piece] = []
        for document in order:
            whole = _Piece(self._tokens(document.rendered(self._tokenizer)), document.key, 0)
            if len(whole.tokens) < self._seq_len:
                yield from self._packed(whole)
                continue
            first, *more = self._windows(whole, margins)
            yield first
            windows.extend(more)
        yield from windows
        for margin in margins:
            yield from self._packed(margin)

    def _tokens(self, text: str) -> list[int]:
        # `verbose=False`: a text longer than the model's context is no mistake, it is cut here.
        tokens = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        self.tokens += len(tokens)
        return tokens

    def _windows(self, whole: _Piece, margins: list[_Piece]) -> list[Sample]:
        """Return all windows of a long document, a random one first; keep what is left over."""
        tokens, key = whole.tokens, whole.key
        number, slack = divmod(len(tokens), self._seq_len)
        lead = derive_seed(self._seed, "lead", key) % (slack + 1)
        stop = lead + number * self._seq_len
        around = (_Piece(tokens[:lead], key, 0), _Piece(tokens[stop:], key, stop))
        margins.extend(margin for margin in around if margin.tokens)
        starts = range(lead, stop, self._seq_len)
        windows = [whole.sample(start, self._seq_len) for start in starts]
        chosen = derive_seed(self._seed, "window", key) % number
        return [windows[chosen], *windows[:chosen], *windows[chosen + 1 :]]

    def _packed(self, piece: _Piece) -> Iterator[Sample]:
        """Yield full samples of what is pending and these tokens; keep the rest pending."""
        eos = self._tokenizer.eos_token_id
        if self._pending and piece.tokens and eos is not None:
            self._append([eos], piece.key, piece.offset)
        self._append(piece.tokens, piece.key, piece.offset)
        while len(self._pending) >= self._seq_len:
            tokens = torch.tensor(self._pending[: self._seq_len])
            yield Sample(tokens, *self._sources[0])
            del self._pending[: self._seq_len], self._sources[: self._seq_len]

    def _append(self, tokens: list[int], key: str, offset: int) -> None:
        self._pending.extend(tokens)
        self._sources.extend((key, offset + place) for place in range(len(tokens)))


def published_samples(
    documents: Sequence[Document], tokenizer: Tokenizer, numbers: range, seq_len: int, seed: int
) -> list[Sample]:
    """Return the samples of these numbers.

    For each, documents are drawn until one has more than ``seq_len`` tokens, special tokens
    included, and a window of it is drawn. Documents may repeat.

    `documents`: what to draw from, whole; their order does not matter. `numbers`: which samples,
    for example 4 to 6 for the third client of two samples each. `seq_len`: `pruner.seq_len`. Raises
    DataError if no document is longer than a sample.
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
        # A chat's template has written the special tokens itself.
        special = not document.messages
        text = document.rendered(tokenizer)
        tokens = tokenizer.encode(text, add_special_tokens=special, verbose=False)
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
