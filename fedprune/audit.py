"""What a site's answers would reveal of its texts, measured by attacks, without any network.

Each release, what leaves one client or what a sum over all clients says, is attacked as by somebody
who has the public model and other texts of the kind: the norms that a mask tells, the words of the
calibration set, and whether a known sample was in it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import RunConfig, config_from_overrides, replace
from fedprune.data.clients import client_samples, heldout_shares
from fedprune.data.documents import Document
from fedprune.data.samples import packed_samples
from fedprune.data.texts import load_documents
from fedprune.errors import ConfigError, DataError
from fedprune.memory import free_memory
from fedprune.methods.collection import Collection
from fedprune.methods.decoding import Decoder
from fedprune.methods.exchange import BlockExchange, BlockTask, Contributor, Pooled, Summed
from fedprune.methods.limited import ClippedBlock, Plan, Share, Shortener, shortened
from fedprune.methods.noisy import NoisyExchange, NoisySums, guarantee
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import PublicText, public_samples, token_inputs
from fedprune.methods.registry import get_method, method_names
from fedprune.models.device import Limits, pick_device
from fedprune.models.loading import LoadedModel, load_model
from fedprune.privacy.membership import Separation, likelihood_ratios, separation
from fedprune.privacy.noise import discrete_gaussian
from fedprune.privacy.words import Recovered, projections, recovered_counts, score
from fedprune.pruning.block_kinds import BlockKind
from fedprune.pruning.blocks import BlockWalk, StandIn, input_groups
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.kinds import BLOCK_KINDS
from fedprune.pruning.statistics import (
    ColumnKind,
    ColumnSquares,
    ColumnStatistics,
    LocalKind,
    MomentStatistics,
    Statistic,
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
    # the area of the same attack on sums in which others are in their place: by so much the site's
    # texts differ from those that they are compared with, whoever took part; None: too few others
    guess: float | None


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
    bench, half = _Bench(config, loaded), len(others) // 2
    words, notes = _Words.of(bench, own, others)

    def known(rows: Callable[[Sequence[Tensor]], Squares], samples: Sequence[Tensor]) -> _Known:
        single, apart = rows(own), rows(others)
        background = {key: found[:half] for key, found in apart.items()}
        strangers = {key: found[half:] for key, found in apart.items()}
        every = single
        if len(samples) > len(own):
            more = rows(samples[len(own) :])
            every = {key: np.concatenate([single[key], more[key]]) for key in single}
        return _Known(single, every, strangers, background)

    everybody = [*own, *pool]
    inputs = known(bench.squares, everybody)
    noise = _Noise.of(bench, ColumnSquares())
    if noise is None:
        notes = (*notes, "noise was not tried: pip install 'fedprune[dp]' brings what it takes")
    releases = [*_of_inputs(bench, inputs.of(len(own)), noise, words, own, "one client")]
    together = f"{config.federation.num_clients} clients" if pool else ""
    if pool:
        releases += _of_inputs(bench, inputs, noise, words, everybody, together)
    for kind in BLOCK_KINDS.values():
        if kind.measured and Plan.here([kind], loaded).total:
            found = known(partial(bench.measures, kind), everybody)
            noise = _Noise.of(bench, kind)
            releases += _of_block(kind, found.of(len(own)), noise, "one client")
            if pool:
                releases += _of_block(kind, found, noise, together)
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


def _of_inputs(  # noqa: PLR0913 - what is attacked, and with what
    bench: "_Bench",
    known: "_Known",
    noise: "_Noise | None",
    words: "_Words | None",
    samples: Sequence[Tensor],
    whose: str,
) -> Iterator[Release]:
    """Yield what is told by sums of squared inputs of some samples, and by what is made of them."""
    alone, tokens = whose == "one client", len(samples) * bench.config.pruner.seq_len
    what = f"the sums of {whose}" if alone else f"the sums over {whose}"
    squares, guess = known.sums, known.guess()

    def named(found: Squares) -> Recovered | None:
        return words.found(found, tokens, samples) if words else None

    masked = bench.told_by_masks(squares)
    yield Release(
        what.replace("sums", "masks").replace("over", "made of the sums over"),
        _sends("masks", "weights") if alone else (),
        _norms(masked, squares),
        named(masked),
        known.separation(_relative(masked), relative=True),
        guess,
    )
    plain = known.separation(squares)
    yield Release(what, _sends("sums") if alone else (), None, named(squares), plain, guess)
    public = bench.first_inputs(samples)
    if public:
        shown = {key: sums for key, sums in squares.items() if key not in public}
        yield Release(
            f"{what}, the first inputs public text's",
            (),
            None,
            named({**squares, **public}),
            known.separation(shown),
            guess,
        )
    if noise:
        told = noise.told(known.every)
        sent = {key: told[key] for key in told if noise.covers(key)}
        name = f"{what} with noise (epsilon {noise.epsilon:g})"
        found = known.separation(sent)
        yield Release(name, (), _norms(sent, squares), named(told), found, guess)
    if words and alone:
        moments = words.by_moments(samples, bench.config.seed)
        name = "the second moments of one client"
        yield Release(name, _sends("moments"), None, moments, plain, guess)


def _of_block(
    kind: BlockKind, known: "_Known", noise: "_Noise | None", whose: str
) -> Iterator[Release]:
    """Yield what is told by the sums of some samples that a block has of its own."""
    alone = whose == "one client"
    what = f"the sums of {kind.name} {'of' if alone else 'over'} {whose}"
    senders, guess = _collects(kind) if alone else (), known.guess()
    yield Release(what, senders, None, None, known.separation(known.sums), guess)
    if noise:
        found = known.separation(noise.told(known.every))
        name = f"{what} with noise (epsilon {noise.epsilon:g})"
        yield Release(name, (), None, None, found, guess)


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
    """Return the labels of the methods whose clients send one of some payloads, of inputs."""
    return tuple(
        get_method(name).words.label
        for name in method_names()
        if (exchange := _exchange(name))
        and exchange.payload in payloads
        and not (exchange.summed and all(isinstance(one, BlockKind) for one in exchange.summed))
    )


def _exchange(name: str, *overrides: str) -> BlockExchange | None:
    """Return a method's exchange, with a pruner that goes with it."""
    for pruner in ("wanda", "sparsegpt"):
        try:
            config = config_from_overrides([f"strategy={name}", f"pruner={pruner}", *overrides])
        except ConfigError:
            continue
        return get_method(name).exchange(config)
    return None


def _collects(kind: BlockKind) -> tuple[str, ...]:
    """Return the labels of the methods whose clients send a block's statistic."""
    found = []
    for name in method_names():
        method = get_method(name)
        exchange = _exchange(name, *(method.with_noise or "").split())
        if exchange and kind.name in exchange.collects:
            found.append(method.words.label)
    return tuple(found)


@dataclass
class Rows:
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

    def close(self) -> Rows:
        if not self._parts:
            return Rows(np.zeros((0, 0), dtype=np.float32))
        return Rows(torch.cat(self._parts).numpy())


class RowsKind(LocalKind[Rows]):
    """Sums of one sample each, which never leave this process."""

    def __init__(self, vectors: bool = False) -> None:
        self.name, self._vectors = "rows", vectors

    def start(self, width: int) -> _RowsRecording:
        """Return an empty record."""
        return _RowsRecording(self._vectors)

    def add(self, first: Rows, second: Rows) -> Rows:
        """Return the rows of both."""
        return Rows(np.concatenate([first.found, second.found]))


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
        for block in walk.dense_blocks():
            observed = walk.observe([RowsKind()]).linears["rows"]
            found |= _rows(block, observed, len(samples))
        return found

    def first_inputs(self, samples: Sequence[Tensor]) -> Squares:
        """Return what `privacy.first_input` public puts in place of some inputs."""
        if not self._public:
            return {}
        samples_of_public, names = self._public
        stand_in = StandIn(samples_of_public, names).cut(sum(map(len, samples)))
        walk = self.walk(stand_in)
        observed = walk.observe([RowsKind()]).linears["rows"]
        stood_in = {name: rows for name, rows in observed.items() if name in names}
        found = _rows(0, stood_in, len(stand_in))
        return {key: rows.sum(0) for key, rows in found}

    @cached_property
    def _public(self) -> tuple[tuple[Tensor, ...], frozenset[str]] | None:
        """The public text, and the linears of the first block whose inputs become its."""
        names = token_inputs(self.loaded)
        return (tuple(public_samples(self.config, self.loaded)), names) if names else None

    def measures(self, kind: BlockKind, samples: Sequence[Tensor]) -> Squares:
        """Return what each sample adds to a block's statistic, (samples, numbers) each."""
        walk, plan, kept = self.walk(samples), Plan.here([kind], self.loaded), dict[str, Any]()
        found = dict[Input, NDArray[np.float32]]()
        for block in walk.dense_blocks():
            apart = _Apart(plan, block)
            walk.observe((), [ClippedBlock(kind, apart)], kept)
            for key, rows in apart.rows.items():
                found[block, (key,)] = np.array(rows, dtype=np.float32)
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

    @classmethod
    def of(cls, bench: "_Bench", kind: Summed) -> "_Noise | None":
        """Return it, None where the packages that it takes are not installed."""
        config, loaded = bench.config, bench.loaded
        epsilon = config.privacy.epsilon or _EPSILON
        config = replace(config, privacy=replace(config.privacy, epsilon=epsilon, secure=False))
        exchange = NoisyExchange(Collection(config, [kind]))
        try:
            guarantee(config)
            discrete_gaussian(1, 64.0)
        except ConfigError:
            return None
        public = PublicText.of(config, loaded, [kind])
        inputs = input_groups(loaded) if isinstance(kind, ColumnKind) else ()
        return cls(exchange, PublicModel.of(loaded, inputs=inputs, public=public))

    @property
    def epsilon(self) -> float:
        """What is guaranteed."""
        return guarantee(self.exchange.config).epsilon

    def covers(self, key: Input) -> bool:
        """Whether anything is sent of an input."""
        shares = self.exchange.plan(self.model).shares[key[0]]
        return any(key[1] == _names(share) for share in shares)

    def told(self, rows: Squares) -> Squares:
        """Return what the server makes of samples' sums, clipped and with noise as wide."""
        found = dict[Input, NDArray[np.float32]]()
        for block in sorted({block for block, _ in rows}):
            here = {names: samples for (one, names), samples in rows.items() if one == block}
            pooled = self._pooled(block, here)
            for names in here:
                for known in pooled.inputs.values():
                    if names in known:
                        found[block, names] = known[names].sums.numpy()
            for kind in self.exchange.summed:
                if isinstance(kind, BlockKind):
                    site = self.model.sites[block]
                    for name, sums in kind.to_measures(pooled.block[kind.name], site).items():
                        found[block, (f"{kind.name}/{name}",)] = sums.astype(np.float32)
        return found

    def _pooled(self, block: int, rows: Mapping[tuple[str, ...], NDArray[np.float32]]) -> Pooled:
        config, plan = self.exchange.config, self.exchange.plan(self.model)
        length, total = (
            config.pruner.seq_len,
            NoisySums(self.exchange, BlockTask(self.model, block)),
        )
        answer: dict[str, NDArray[Any]] = {}
        for share in plan.shares[block]:
            samples = rows.get(_names(share), ())
            sums = discrete_gaussian(share.count, total.width)
            scale = self.exchange.scale(self.model, block, share)
            for sample in samples:
                numbers = (np.append(sample, length) if share.linears else sample).astype(float)
                sums += shortened(numbers, scale, plan, share, config.privacy.clip)
            answer[share.key] = sums
        count = max(map(len, rows.values()), default=0)
        total.add(answer, Contributor("these", 1, count * length))
        return total.pooled()


def _names(share: Share) -> tuple[str, ...]:
    """Return what a share is called here: the linears of an input, or a measure of the block."""
    return share.linears or (share.key,)


class _Apart(Shortener):
    """Takes what each sample adds to the shares of a block, as it is."""

    def __init__(self, plan: Plan, block: int) -> None:
        every = {share.key: np.ones(share.count) for share in plan.shares[block]}
        super().__init__(plan, block, every, 1.0)
        self.rows: dict[str, list[NDArray[np.float64]]] = {key: [] for key in every}

    def __call__(self, share: Share, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
        self.rows[share.key].append(numbers)
        return np.zeros(share.count, dtype=np.int64)


def _rows(
    block: int, observed: Mapping[str, Statistic], samples: int
) -> Iterator[tuple[Input, NDArray[np.float32]]]:
    for linears, rows in shared_inputs(observed):
        if isinstance(rows, Rows) and len(rows.found) == samples:
            yield (block, linears), rows.found


@dataclass(frozen=True)
class _Known:
    """Samples that an attacker asks about, what it knows of others, and what is in the sums."""

    members: Squares  # what each of the site's samples adds: (samples, numbers) of each input
    every: Squares  # what each sample in the sums adds, the site's first
    # strangers, background: what other samples add: those that members are to be told from, and
    # those to learn from
    strangers: Squares
    background: Squares

    @property
    def sums(self) -> Squares:
        """What all samples in the sums add."""
        return {key: rows.sum(0) for key, rows in self.every.items()}

    def of(self, count: int) -> "_Known":
        """Return the same of the first so many samples."""
        return dataclasses.replace(
            self, every={key: rows[:count] for key, rows in self.every.items()}
        )

    def guess(self) -> float | None:
        """Return the area of the attack where other samples are in the place of members."""
        count = len(next(iter(self.members.values())))
        if len(next(iter(self.background.values()))) < count + _LEAST_OTHERS:
            return None
        every = {
            key: np.concatenate([self.background[key][:count], rows[count:]])
            for key, rows in self.every.items()
        }
        background = {key: rows[count:] for key, rows in self.background.items()}
        other = dataclasses.replace(self, every=every, background=background)
        return other.separation(other.sums).auc

    def separation(self, released: Squares, *, relative: bool = False) -> Separation:
        """Return how well members are told from strangers by what was released."""
        parts = [self.members, self.strangers, self.background]
        if relative:
            parts = [_relative(part) for part in parts]
        count = len(next(iter(self.every.values())))
        members, strangers, background = (_flat(part, released) for part in parts)
        mean = _flat(released, released) / (1 if relative else count)
        one, other = (
            likelihood_ratios(mean, rows, background, count) for rows in (members, strangers)
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
        observed = walk.observe([RowsKind(vectors=True)]).linears["rows"]
        pair = bench.walk([own[0][:2]]).observe([RowsKind()]).linears["rows"]
        together = dict(_rows(0, pair, 1))
        for key, vectors in _rows(0, observed, vocabulary):
            expected = np.square(vectors[own[0][:2].numpy()]).sum(0)
            if np.abs(together[key][0] - expected).max() <= _ALIKE * expected.max():
                return cls(bench, key, vectors, _counts(others, vocabulary)), ()
        return None, (
            "the bag of words was not attacked: what enters the first block depends on a "
            "token's place, too",
        )

    def found(self, squares: Squares, tokens: int, samples: Sequence[Tensor]) -> Recovered:
        """Return how well sums of squares tell the words of samples."""
        counts = recovered_counts(np.square(self.vectors), squares[self.key], tokens)
        return score(counts, _counts(samples, len(self.vectors)), self.others)

    def by_moments(self, own: Sequence[Tensor], seed: int) -> Recovered:
        """Return how well second moments tell them."""
        known = self.bench.walk(own).collect("moments")[self.key[1][0]]
        if not isinstance(known, MomentStatistics):
            raise RuntimeError("second moments were asked for.")
        moments = known.moments.cpu().double().numpy()
        true = _counts(own, len(self.vectors))
        equations = min(len(moments) * (len(moments) + 1) // 2, 4 * int((true > 0).sum()) + 64)
        public, observed = projections(self.vectors.astype(np.float64), moments, equations, seed)
        return score(recovered_counts(public, observed, known.tokens), true, self.others)


def _counts(samples: Sequence[Tensor], vocabulary: int) -> NDArray[np.int64]:
    """Return how often each token occurs, shape (vocabulary,)."""
    return np.bincount(torch.cat([*samples]).numpy(), minlength=vocabulary)
