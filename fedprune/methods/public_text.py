"""Text that is nobody's: what the public model writes itself, or a text that is given.

It tells how large inputs are before anything of a client's is known, and stands in for clients'
texts where these would show too much.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.data.documents import Document
from fedprune.data.samples import packed_samples
from fedprune.disk import home
from fedprune.errors import ConfigError, DataError, WireError
from fedprune.evaluation.perplexity import predictions
from fedprune.models.device import Limits, pick_device
from fedprune.models.loading import LoadedModel
from fedprune.models.writing import first_token
from fedprune.pruning.block_kinds import BlockKind
from fedprune.pruning.blocks import BlockWalk, Observed
from fedprune.pruning.statistics import (
    LocalKind,
    MomentStatistics,
    SecondMoments,
    Statistic,
    StatisticKind,
    shared_inputs,
)
from fedprune.seeds import derive_seed
from fedprune.wire.arrays import Arrays, encode_arrays

_SAMPLES = 32
_LENGTH = 128
_ROUNDS = 6
_BATCH = 16
_TOKENS = "tokens"
_MOST_BYTES = 1 << 24
_ALIKE = 1e-3  # of an input: as much may rounding change it


@dataclass(frozen=True)
class PublicText:
    """What public text makes of a model's inputs."""

    samples: tuple[Tensor, ...]  # token ids, each int64 of shape (tokens,), all equally long
    # block -> statistics of it and of its inputs; empty where nothing is measured by it
    observed: tuple[Observed, ...]
    # linears of the first block whose input tells of one token and its place, and of no other
    alone: frozenset[str]

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return sum(map(len, self.samples))

    @classmethod
    def of(
        cls,
        config: RunConfig,
        loaded: LoadedModel,
        kinds: Sequence[StatisticKind[Any] | BlockKind] = (),
    ) -> "PublicText":
        """Return it with statistics, or without; errors as :func:`public_samples`."""
        samples = public_samples(config, loaded)
        observed = public_statistics(loaded, samples, kinds, config) if kinds else ()
        return cls(tuple(samples), observed, token_inputs(loaded))


def encode_samples(samples: Sequence[Tensor]) -> bytes:
    """Return samples of one length as bytes."""
    return encode_arrays({_TOKENS: torch.stack(list(samples)).to(torch.int32)})


def decode_samples(data: bytes, vocabulary: int) -> list[Tensor]:
    """Return what :func:`encode_samples` made, from a server.

    Raises WireError if it is no text of the model's vocabulary, or a very long one.
    """
    message = Arrays(data, [_TOKENS])
    announced = message.announced(_TOKENS)
    if announced.dtype != "int32" or len(announced.shape) != 2 or announced.nbytes > _MOST_BYTES:
        raise WireError(f"tokens of public text are int32, samples by tokens, got {announced}.")
    found = message.take(_TOKENS, announced)
    message.finish()
    if not found.size or found.min() < 0 or found.max() >= vocabulary:
        raise WireError(f"tokens of public text are from 0 to {vocabulary - 1}.")
    return list(torch.from_numpy(found.astype(np.int64)))


def public_samples(config: RunConfig, loaded: LoadedModel) -> list[Tensor]:
    """Return samples of `privacy.public_text`, or of what the model writes, int64, (tokens,) each.

    Raises ConfigError if the file cannot be read, or has too little text for two samples.
    """
    length, path = min(_LENGTH, config.pruner.seq_len), config.privacy.public_text
    seed = derive_seed(config.seed, "public text")
    if not path:
        return written(loaded, _SAMPLES, length, seed, config)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"`privacy.public_text` must be a file of plain text, got '{path}': {error}. Leave it "
            "out for text that the model writes itself."
        ) from None
    documents = [Document(text, "public", "public")]
    for count in (_SAMPLES, 16, 4, 2):
        try:
            found = packed_samples(documents, loaded.tokenizer, count, length, seed)
            return [one.tokens for one in found]
        except DataError:
            continue
    raise ConfigError(
        f"`privacy.public_text` must have at least {2 * length} tokens, '{path}' has fewer. Give "
        "more text, or leave it out for text that the model writes itself."
    )


def written(
    loaded: LoadedModel, count: int, length: int, seed: int, config: RunConfig
) -> list[Tensor]:
    """Return what a model writes by itself, all places of all samples at once, in a few rounds.

    Each round draws every token anew from what the model expects after the tokens before it of the
    round before. After n rounds the first n tokens of a sample are drawn as one after another; the
    others come near: what one pass a token would draw exactly (:mod:`fedprune.models.writing`)
    takes a few passes for all of them. The model passes block by block, as everywhere.

    `config`: `pruner.device`, and the memory that a walk may use.
    """
    draw = torch.Generator().manual_seed(seed)
    rows = _vocabulary(loaded)
    tokens = torch.randint(0, rows, (count, length), generator=draw)
    tokens[:, 0] = first_token(loaded) or 0
    device = pick_device(config.pruner.device)
    limits = Limits(_BATCH, config.pruner.hidden_memory_mb, "pruner.seq_len")
    for _ in range(_ROUNDS):
        for row, logits in enumerate(predictions(loaded, tokens, device, limits)):
            chances = torch.softmax(logits[:, :rows].float().cpu(), dim=-1)
            tokens[row, 1:] = torch.multinomial(chances, 1, generator=draw)[:, 0]
    return list(tokens)


def _vocabulary(loaded: LoadedModel) -> int:
    """Return how many tokens the tokenizer can make; an embedding may have rows of no token."""
    return min(len(loaded.tokenizer), int(loaded.model.get_input_embeddings().weight.shape[0]))


def public_statistics(
    loaded: LoadedModel,
    samples: Sequence[Tensor],
    kinds: Sequence[StatisticKind[Any] | BlockKind],
    config: RunConfig,
) -> tuple[Observed, ...]:
    """Return for each block what public text makes of it and of its inputs.

    `loaded`: the dense model; unchanged. `config`: the device and memory that a walk may use.
    """
    limits = Limits(1, config.pruner.hidden_memory_mb, "pruner.seq_len")
    walk = BlockWalk(loaded, samples, pick_device(config.pruner.device), limits=limits)
    inputs = [kind for kind in kinds if isinstance(kind, StatisticKind)]
    blocks = [kind for kind in kinds if isinstance(kind, BlockKind)]
    kept = dict[str, Any]()
    return tuple(walk.observe(inputs, blocks, kept) for _ in walk.dense_blocks())


class PublicMoments:
    """Second moments of the dense model's inputs on public text, for solvers of clients' sums.

    Found in one pass over all blocks when the first is asked for; until they are gone they lie on
    the disk, d^2 numbers of four bytes for each distinct input.
    """

    def __init__(self, config: RunConfig, loaded: LoadedModel) -> None:
        self._config, self._loaded = config, loaded
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, block: int) -> dict[str, MomentStatistics]:
        """Return name of the linear -> statistic; inputs that no token reached are missing.

        Raises ConfigError, ModelError as :func:`public_samples`, and the model's own.
        """
        if self._folder is None:
            self._folder = self._found()
        found: dict[str, MomentStatistics] = {}
        for entry, moments in load_file(self._place(self._folder, block)).items():
            tokens, *linears = entry.split(" ")
            statistic = MomentStatistics(moments, int(tokens))
            found |= dict.fromkeys(linears, statistic)
        return found

    @staticmethod
    def _place(folder: "tempfile.TemporaryDirectory[str]", block: int) -> Path:
        return Path(folder.name) / f"{block}.safetensors"

    def _found(self) -> "tempfile.TemporaryDirectory[str]":
        room = home() / "spill"
        room.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = tempfile.TemporaryDirectory(dir=room)
        limits = Limits.of(self._config.pruner)
        device = pick_device(self._config.pruner.device)
        samples = public_samples(self._config, self._loaded)
        walk = BlockWalk(self._loaded, samples, device, limits=limits)
        for block in walk.dense_blocks():
            told = shared_inputs(walk.observe([SecondMoments()]).linears[SecondMoments.name])
            arrays = {
                " ".join((str(one.tokens), *linears)): one.moments.cpu().contiguous()
                for linears, one in told
                if isinstance(one, MomentStatistics) and one.tokens
            }
            save_file(arrays, self._place(folder, block))
        return folder


def token_inputs(loaded: LoadedModel) -> frozenset[str]:
    """Return the linears of the first block whose input at a token no other token changes.

    Sums over such inputs are sums over the vocabulary, and tell which words there are.
    """
    last = _vocabulary(loaded) - 1
    pairs = [(0, last // 3), (last, last // 3), (last // 2, last // 3)]
    found: list[Mapping[str, Statistic]] = []
    for pair in pairs:
        found.append(BlockWalk(loaded, [torch.tensor(pair)]).observe([_LAST]).linears[_LAST.name])
    return frozenset(
        name
        for name, first in found[0].items()
        if isinstance(first, _Last) and all(first.like(other[name]) for other in found[1:])
    )


@dataclass
class _Last:
    """What enters a linear at the last token of a sample; None where that is not known."""

    vector: Tensor | None
    tokens: int = 0

    def like(self, other: Statistic) -> bool:
        if self.vector is None or not isinstance(other, _Last) or other.vector is None:
            return False
        most = float(self.vector.abs().max())
        return float((self.vector - other.vector).abs().max()) <= _ALIKE * most


class _LastRecording:
    def __init__(self) -> None:
        self._found = _Last(None)

    def add(self, inputs: Tensor) -> None:
        if inputs.ndim == 3:  # others are tokens that were routed somewhere
            self._found.vector = inputs[0, -1].detach().float().cpu()

    def close(self) -> _Last:
        return self._found


class _LastKind(LocalKind[_Last]):
    """The input at the last token, which never leaves this process."""

    name = "last"

    def start(self, width: int) -> _LastRecording:
        return _LastRecording()

    def add(self, first: _Last, second: _Last) -> _Last:
        return second


_LAST = _LastKind()
