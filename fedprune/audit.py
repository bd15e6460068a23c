"""What a site's answers would reveal of its texts, measured by attacks, without any network.

Each release, what leaves one client or what a sum over all clients says, is attacked as by somebody
who has the public model and other texts of the kind: the norms that a mask tells, the words of the
calibration set, and whether a known sample was in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import RunConfig, config_from_overrides, replace
from fedprune.config.schema import strategy_for
from fedprune.data.clients import client_samples, heldout_shares
from fedprune.data.documents import Document
from fedprune.data.samples import packed_samples
from fedprune.data.texts import load_documents
from fedprune.errors import ConfigError, DataError
from fedprune.memory import free_memory
from fedprune.methods.decoding import Decoder
from fedprune.methods.noisy import NoisyExchange, Plan, estimate, guarantee
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import PublicText
from fedprune.methods.registry import get_method, method_names
from fedprune.models.device import Limits, pick_device
from fedprune.models.loading import LoadedModel, load_model
from fedprune.privacy.membership import Separation, likelihood_ratios, separation
from fedprune.privacy.noise import NORM_BITS, clipped, discrete_gaussian, part_norm, unit
from fedprune.privacy.words import Recovered, projections, recovered_counts, score
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.statistics import (
    ColumnSquares,
    ColumnStatistics,
    ColumnSums,
    MomentStatistics,
    Statistic,
    StatisticKind,
    shared_inputs,
)
from fedprune.pruning.wanda import WandaPruner
from fedprune.seeds import derive_seed
from fedprune.wire.changes import mask_of

Input = tuple[int, tuple[str, ...]]
"""A block, and its linears that read the same input."""

Squares = Mapping[Input, NDArray[np.float32]]
"""Input -> sums of squares of its columns: (d_in,), or (samples, d_in)."""

_EPSILON = 8.0  # where the configuration asks for none
_LEAST_OTHERS = 8
_MOST_OTHERS = 256
_BATCH = 256  # single tokens that run at once
_ALIKE = 1e-3  # of an input: as much may a token's place in a sample change it


@dataclass(frozen=True)
class Norms:
    """How well the norms of inputs are known."""

    error: float  # root mean square of the relative errors of the norms, up to one factor an input
    correlation: float  # of the logarithms of the norms with the true ones, mean over inputs


@dataclass(frozen=True)
class Release:
    """Something that leaves sites, and what it told."""

    what: str
    # the strategies under which it, or something that tells at least as much, leaves a client
    sent_by: tuple[str, ...]
    norms: Norms | None  # None where norms themselves are released
    words: Recovered | None  # None where the first block's inputs tell no bag of words
    membership: Separation  # of the client's own samples from others of the kind


@dataclass(frozen=True)
class Audit:
    """What was found."""

    # clients, samples, seq_len, others: clients in the sums; the site's samples and their tokens;
    # other samples of the kind
    clients: int
    samples: int
    seq_len: int
    others: int
    sparsity: float  # of the masks, which are Wanda's with rows as comparison groups
    releases: tuple[Release, ...]  # from one client alone to what all of them publish
    sends: Mapping[str, Mapping[str, str]]  # strategy -> `sends` and `tells`, in its own words
    notes: tuple[str, ...]  # what could not be measured, and why

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)


def audit(config: RunConfig) -> Audit:
    """Attack what the first client of a configuration would send.

    `config`: model, `data`, `federation.num_clients` and the pruner's samples; texts are the first
    client's partition, other texts of the kind its share of the held-out part. Raises FedpruneError
    if model or texts cannot be had, or there is too little held-out text to compare with.
    """
    loaded = load_model(config.model)
    own, pool, others = _samples(config, loaded)
    bench = _Bench(config, loaded)
    single, apart = bench.squares(own), bench.squares(others)
    half = len(others) // 2
    background = {key: rows[:half] for key, rows in apart.items()}
    strangers = {key: rows[half:] for key, rows in apart.items()}
    lone, every = {key: rows.sum(0) for key, rows in single.items()}, single
    sums = {"the sums of one client": (lone, len(own), _sends("sums"))}
    if pool:
        others_rows = bench.squares(pool)
        every = {key: np.concatenate([single[key], rows]) for key, rows in others_rows.items()}
        together = {key: rows.sum(0) for key, rows in every.items()}
        count = len(own) + len(pool)
        clients = config.federation.num_clients
        sums[f"the sums over {clients} clients"] = (together, count, ())
    words, notes = _Words.of(bench, own, others)
    noise = _Noise.of(bench)
    releases: list[Release] = []
    for what, (squares, count, senders) in sums.items():
        masked = bench.told_by_masks(squares)
        name = what.replace("sums", "masks").replace("over", "made of the sums over")
        known = _Known(single, strangers, background, count)
        tokens = count * config.pruner.seq_len
        releases += [
            Release(
                name,
                _sends("masks", "weights") if senders else (),
                _norms(masked, squares),
                words.found(masked, tokens) if words and senders else None,
                known.separation(_relative(masked), relative=True),
            ),
            Release(
                what,
                senders,
                None,
                words.found(squares, tokens) if words and senders else None,
                known.separation(squares),
            ),
        ]
        if noise:
            told = noise.told(single if senders else every)
            sent = {key: told[key] for key in told if noise.covers(key)}
            releases.append(
                Release(
                    f"{what} with noise (epsilon {noise.epsilon:g})",
                    (),
                    _norms(sent, squares),
                    words.found(told, tokens) if words and senders else None,
                    known.separation(sent),
                )
            )
        if words and senders:
            moments = words.by_moments(own, config.seed)
            last = next(one for one in releases if one.what == what)
            name = "the second moments of one client"
            releases.append(Release(name, _sends("moments"), None, moments, last.membership))
    if noise is None:
        notes = (*notes, "noise was not tried: pip install 'fedprune[dp]' brings what it takes")
    return Audit(
        config.federation.num_clients if pool else 1,
        len(own),
        config.pruner.seq_len,
        len(others),
        config.sparsity,
        tuple(releases),
        {name: asdict(get_method(name).words) for name in method_names()},
        notes,
    )


def _samples(
    config: RunConfig, loaded: LoadedModel
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the first client's samples, those of the others, and as many of held-out text."""
    clients, tokenizer = config.federation.num_clients, loaded.tokenizer
    train, heldout = (load_documents(config.data, part) for part in ("train", "heldout"))
    drawn = [
        [one.tokens for one in client_samples(config, train, tokenizer, place, clients)]
        for place in range(clients)
    ]
    share = heldout_shares(config, train, heldout, clients)[0]
    others = _others(config, loaded, share) or _others(config, loaded, heldout)
    if not others:
        raise DataError(
            f"The held-out part of `data` has too little text: {2 * _LEAST_OTHERS} samples of "
            f"`pruner.seq_len` {config.pruner.seq_len} tokens are needed to compare with. Give "
            "more text, `data.heldout_path`, or a smaller `pruner.seq_len`."
        )
    return drawn[0], [tokens for client in drawn[1:] for tokens in client], others


def _others(config: RunConfig, loaded: LoadedModel, documents: Sequence[Document]) -> list[Tensor]:
    """Return as many samples as documents give, an even number; none if they are too few."""
    count, seed = _MOST_OTHERS, derive_seed(config.seed, "audit")
    while count >= 2 * _LEAST_OTHERS:
        try:
            found = packed_samples(documents, loaded.tokenizer, count, config.pruner.seq_len, seed)
            return [one.tokens for one in found]
        except DataError:
            count //= 2
    return []


def _sends(*payloads: str) -> tuple[str, ...]:
    """Return the labels of the methods whose clients send one of some payloads."""
    return tuple(get_method(one).words.label for one in method_names() if _payload(one) in payloads)


def _payload(name: str) -> str:
    """Return what a method's clients send, with a pruner that goes with it."""
    for pruner in ("wanda", "sparsegpt"):
        try:
            config = config_from_overrides([f"strategy={name}", f"pruner={pruner}"])
        except ConfigError:
            continue
        return get_method(name).exchange(config).payload
    return ""


@dataclass
class _Rows:
    """What each sample adds, in their order: sums of squares, or the vectors themselves."""

    found: NDArray[np.float32]
    tokens: int = 0


class _RowsRecording:
    def __init__(self, vectors: bool) -> None:
        self._vectors, self._parts = vectors, list[Tensor]()

    def add(self, inputs: Tensor) -> None:
        if inputs.ndim != 3:  # rows that belong to no sample: tokens routed to an expert
            return
        values = inputs.float()
        self._parts.append((values if self._vectors else values.square()).sum(1).cpu())

    def close(self) -> _Rows:
        if not self._parts:
            return _Rows(np.zeros((0, 0), dtype=np.float32))
        return _Rows(torch.cat(self._parts).numpy())


class _RowsKind(StatisticKind[_Rows]):
    """Sums of one sample each, which never leave this process."""

    def __init__(self, vectors: bool = False) -> None:
        self.name, self._vectors = "rows", vectors

    def start(self, width: int) -> _RowsRecording:
        """Return an empty record."""
        return _RowsRecording(self._vectors)

    def arrays(self, statistic: _Rows) -> dict[str, NDArray[Any]]:
        """Refuse: rows of samples are for nobody else."""
        raise RuntimeError("what single samples add is not sent.")

    def read(self, arrays: Mapping[str, NDArray[Any]], width: int, tokens: int) -> _Rows:
        """Refuse, as `arrays`."""
        raise RuntimeError("what single samples add is not sent.")

    def add(self, first: _Rows, second: _Rows) -> _Rows:
        """Return the rows of both."""
        return _Rows(np.concatenate([first.found, second.found]))


class _Bench:
    """The dense model on samples."""

    def __init__(self, config: RunConfig, loaded: LoadedModel) -> None:
        self.config, self.loaded = config, loaded
        self._spec = MaskSpec(config.sparsity, config.pruner.pattern, "row")

    def walk(self, samples: Sequence[Tensor], batch: int = 1) -> BlockWalk:
        """Return a walk that stands at the first block."""
        pruner = self.config.pruner
        limits = Limits(batch, pruner.hidden_memory_mb, "pruner.seq_len")
        return BlockWalk(self.loaded, samples, pick_device(pruner.device), limits=limits)

    def squares(self, samples: Sequence[Tensor]) -> Squares:
        """Return sums of squares, (samples, d_in) for every input that all tokens pass."""
        walk, found = self.walk(samples), dict[Input, NDArray[np.float32]]()
        while walk.blocks_left:
            observed = walk.observe([_RowsKind()]).linears["rows"]
            found |= _rows(walk.position, observed, len(samples))
            if walk.blocks_left == 1:
                break
            walk.advance({})
        return found

    def told_by_masks(self, squares: Squares) -> Squares:
        """Return the squared norms that Wanda's masks on some sums tell, their mean one."""
        found, pruner = {}, WandaPruner()
        for (block, linears), sums in squares.items():
            weights = {name: self.loaded.weight(block, name) for name in linears}
            known = ColumnStatistics(torch.from_numpy(sums), 1)
            masks = [mask_of(pruner.prune(weights[name], known, self._spec)) for name in linears]
            decoder = Decoder([weights[name].float().numpy() for name in linears])
            found[block, linears] = decoder.fit(masks).squares
        return found


@dataclass(frozen=True)
class _Noise:
    """What becomes of sums where `privacy.epsilon` is set."""

    exchange: NoisyExchange
    model: PublicModel
    plan: Plan

    @classmethod
    def of(cls, bench: _Bench) -> "_Noise | None":
        """Return it, None where the packages that it takes are not installed."""
        config, loaded = bench.config, bench.loaded
        privacy = replace(config.privacy, epsilon=config.privacy.epsilon or _EPSILON)
        method = get_method(strategy_for(WandaPruner.name))
        inner = method.exchange(replace(config, privacy=privacy))
        exchange, plan = NoisyExchange(inner, ColumnSquares()), Plan.here(loaded)
        try:
            guarantee(exchange.config)
            discrete_gaussian(1, 64.0)
        except ConfigError:
            return None
        public = PublicText.of(exchange.config, loaded, ColumnSquares())
        model = PublicModel.of(loaded, inputs=plan.inputs, public=public)
        return cls(exchange, model, plan)

    @property
    def epsilon(self) -> float:
        """What is guaranteed."""
        return guarantee(self.exchange.config).epsilon

    def covers(self, key: Input) -> bool:
        """Whether anything is sent of an input."""
        return key[1] in self.plan.sent(key[0])

    def told(self, rows: Squares) -> Squares:
        """Return what the server makes of samples' squares, clipped and with noise as wide."""
        config, total, found = self.exchange.config, self.plan.total, dict[Input, Any]()
        units = unit(total, config.privacy.clip)
        width = (1 << NORM_BITS) * guarantee(config).multiplier
        for key, samples in rows.items():
            block, linears = key
            public = self.model.public.statistics[block][linears[0]] if self.model.public else None
            if not self.covers(key):
                found[key] = public.sums.numpy() if isinstance(public, ColumnSums) else samples[0]
                continue
            scale = self.exchange.scale(self.model, block, linears).astype(np.float64)
            norm = part_norm(len(scale), total)
            sums = discrete_gaussian(len(scale), width)
            for sample in samples:
                vector = np.append(sample, config.pruner.seq_len).astype(np.float64)
                sums += clipped(vector / scale * units, norm)
            columns = estimate(sums[:-1] / units, width / units) * scale[:-1]
            found[key] = columns.astype(np.float32)
        return found


def _rows(
    block: int, observed: Mapping[str, Statistic], samples: int
) -> Iterator[tuple[Input, NDArray[np.float32]]]:
    for linears, rows in shared_inputs(observed):
        if isinstance(rows, _Rows) and len(rows.found) == samples:
            yield (block, linears), rows.found


@dataclass(frozen=True)
class _Known:
    """Samples that an attacker asks about, and what it knows of others."""

    members: Squares
    strangers: Squares
    background: Squares
    count: int

    def separation(self, released: Squares, *, relative: bool = False) -> Separation:
        """Return how well members are told from strangers by what was released."""
        parts = [self.members, self.strangers, self.background]
        if relative:
            parts = [_relative(part) for part in parts]
        members, strangers, background = (_flat(part, released) for part in parts)
        mean = _flat(released, released) / (1 if relative else self.count)
        one, other = (
            likelihood_ratios(mean, rows, background, self.count) for rows in (members, strangers)
        )
        return separation(one, other)


def _flat(squares: Squares, like: Squares) -> NDArray[np.float32]:
    return np.concatenate([squares[key] for key in like], axis=-1)


def _relative(squares: Squares) -> Squares:
    """Return squares as multiples of their mean over an input's columns."""
    return {
        key: one / np.maximum(one.mean(-1, keepdims=True), 1e-30) for key, one in squares.items()
    }


def _norms(told: Squares, true: Squares) -> Norms:
    errors, correlations = [], []
    for key, squares in told.items():
        live = true[key] > 0
        least = 1e-12 * squares.mean()  # noise may leave nothing
        one, other = (
            0.5 * np.log(np.maximum(part[live].astype(np.float64), least))
            for part in (squares, true[key])
        )
        apart = one - other
        errors.append(np.square(np.expm1(apart - np.median(apart))).mean())
        correlations.append(np.corrcoef(one, other)[0, 1])
    return Norms(float(np.sqrt(np.mean(errors))), float(np.mean(correlations)))


@dataclass(frozen=True)
class _Words:
    """What every token of the vocabulary adds to an input of the first block."""

    bench: _Bench
    key: Input
    vectors: NDArray[np.float32]
    true: NDArray[np.int64]
    others: NDArray[np.int64]

    @classmethod
    def of(
        cls, bench: _Bench, own: Sequence[Tensor], others: Sequence[Tensor]
    ) -> tuple["_Words | None", tuple[str, ...]]:
        """Return it for the first input that depends on the token alone, or why there is none."""
        rows = bench.loaded.model.get_input_embeddings().weight.shape
        if 8 * rows.numel() > free_memory():
            return None, (
                f"the bag of words was not attacked: {rows[0]:,} tokens of {rows[1]:,} numbers "
                "do not fit into memory",
            )
        vocabulary = int(rows[0])
        walk = bench.walk([torch.tensor([token]) for token in range(vocabulary)], _BATCH)
        observed = walk.observe([_RowsKind(vectors=True)]).linears["rows"]
        pair = bench.walk([own[0][:2]]).observe([_RowsKind()]).linears["rows"]
        together = dict(_rows(0, pair, 1))
        for key, vectors in _rows(0, observed, vocabulary):
            expected = np.square(vectors[own[0][:2].numpy()]).sum(0)
            if np.abs(together[key][0] - expected).max() <= _ALIKE * expected.max():
                counts = (
                    np.bincount(torch.cat([*part]).numpy(), minlength=vocabulary)
                    for part in (own, others)
                )
                return cls(bench, key, vectors, *counts), ()
        return None, (
            "the bag of words was not attacked: what enters the first block depends on a "
            "token's place, too",
        )

    def found(self, squares: Squares, tokens: int) -> Recovered:
        """Return how well sums of squares tell the words."""
        counts = recovered_counts(np.square(self.vectors), squares[self.key], tokens)
        return score(counts, self.true, self.others)

    def by_moments(self, own: Sequence[Tensor], seed: int) -> Recovered:
        """Return how well second moments tell them."""
        known = self.bench.walk(own).collect("moments")[self.key[1][0]]
        if not isinstance(known, MomentStatistics):
            raise RuntimeError("second moments were asked for.")
        moments = known.moments.cpu().double().numpy()
        equations = min(len(moments) * (len(moments) + 1) // 2, 4 * int((self.true > 0).sum()) + 64)
        public, observed = projections(self.vectors.astype(np.float64), moments, equations, seed)
        return score(recovered_counts(public, observed, known.tokens), self.true, self.others)
