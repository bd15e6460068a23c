"""Sums with noise: a guarantee for each calibration sample, whatever else an observer knows.

What a sample adds to one input's statistic is a vector of numbers that are never negative, one a
column, and its number of tokens. They are measured by what public text makes of them, made shorter
where they are longer than the run allows, and become whole numbers; these add up over samples and
clients, and noise is added before they leave. The parts of a sample in all inputs of all blocks
have one length together, so that all messages of a run are one release
(:mod:`fedprune.privacy.accounting`), and what is asked later may depend on earlier answers.

The method itself knows nothing of it: its aggregator gets the sum as if a client had sent it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune.config import RunConfig
from fedprune.config.schema import strategy_for
from fedprune.errors import ConfigError, ModelError, ReplyRefusedError, WireError
from fedprune.methods.exchange import (
    Aggregator,
    Answer,
    BlockAggregator,
    BlockExchange,
    BlockPlace,
    BlockResult,
    BlockTask,
    Contributor,
    Pooled,
)
from fedprune.methods.inputs import all_together
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import PublicText, token_inputs
from fedprune.methods.state import Arrays, numbers
from fedprune.methods.word_sums import Layout, Words, signed
from fedprune.models.loading import LoadedModel
from fedprune.privacy.accounting import Guarantee, own_scale
from fedprune.privacy.noise import NORM_BITS, clipped, discrete_gaussian, part_norm, unit
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.blocks import BlockWalk, input_groups
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.statistics import ColumnKind, ColumnSums, StatisticKind, shared_inputs
from fedprune.wire.arrays import ArraySpec, decode_arrays, encode_arrays, most_bytes
from fedprune.wire.changes import Change
from fedprune.wire.sums import LIMIT, ExactSums

Inputs = tuple[tuple[str, ...], ...]
Shapes = Mapping[str, tuple[int, int]]

_NOISY, _SCALE = "noisy", "scale"
_FLOOR = 0.02  # of the mean over columns: what public text hardly excites is measured by this
_CHANCE = 2.0
_SIGMAS = 40  # noise is never further out


@lru_cache(maxsize=64)
def _guarantee(epsilon: float, delta: float, shares: int) -> Guarantee:
    return Guarantee.of(epsilon, delta, shares)


def guarantee(config: RunConfig) -> Guarantee:
    """Return what a configuration with `privacy.epsilon` promises.

    Raises
    ------
    ConfigError
        If there is no `privacy.epsilon`, or the accountant is not installed.
    """
    privacy = config.privacy
    if privacy.epsilon is None:
        raise ConfigError("`privacy.epsilon` is null: there is no guarantee to tell.")
    return _guarantee(privacy.epsilon, privacy.delta, privacy.noise_shares)


def noise_width(config: RunConfig) -> float:
    """Return how wide the noise is that a client adds to its own sums, in units."""
    promise = guarantee(config)
    return own_scale(promise.multiplier * (1 << NORM_BITS), promise.shares)


def _public_text(model: PublicModel) -> PublicText:
    if model.public is None:
        raise ConfigError("`privacy.epsilon` needs statistics of public text.")
    return model.public


@dataclass(frozen=True)
class Plan:
    """Which inputs are told of, and how much of a sample's length each has.

    Attributes
    ----------
    inputs : tuple
        Block -> its inputs, each as the linears that read it.
    shapes : Sequence[Mapping]
        Block -> linear -> (d_out, d_in).
    public : frozenset of str
        Linears of the first block whose inputs are public text's; nothing is sent of them.
    """

    inputs: tuple[Inputs, ...]
    shapes: Sequence[Shapes]
    public: frozenset[str]

    @classmethod
    def here(cls, model: LoadedModel) -> "Plan":
        """Return it as a node finds it out of its own copy of the model, believing nobody."""
        found = _PLANS.get(model.model)
        if found is None:
            shapes = tuple(model.layout.shapes())
            found = _PLANS[model.model] = cls(input_groups(model), shapes, token_inputs(model))
        return found

    @classmethod
    def of(cls, model: PublicModel) -> "Plan":
        """Return it as the server has it."""
        return cls(model.inputs, model.shapes, _public_text(model).alone)

    def sent(self, block: int) -> Inputs:
        """Return the inputs of a block that clients tell of."""
        return tuple(
            linears
            for linears in self.inputs[block]
            if block or not self.public.issuperset(linears)
        )

    def columns(self, block: int, linears: Sequence[str]) -> int:
        """Return how many numbers there are of an input: its columns, and the tokens."""
        return self.shapes[block][linears[0]][1] + 1

    @property
    def total(self) -> int:
        """How many numbers there are of a sample in the whole run."""
        blocks = range(len(self.inputs))
        return sum(self.columns(block, one) for block in blocks for one in self.sent(block))

    def specs(self, block: int, name: str, dtype: str) -> dict[str, ArraySpec]:
        """Return the arrays of a block: of each input that is sent as many numbers as it has."""
        return {
            f"{one[0]}.{name}": ArraySpec(dtype, (self.columns(block, one),))
            for one in self.sent(block)
        }


_PLANS: "WeakKeyDictionary[nn.Module, Plan]" = WeakKeyDictionary()


@dataclass
class ClippedSums:
    """What samples add to an input, each made shorter where it must be.

    Parameters
    ----------
    totals : NDArray[np.int64]
        In units, columns and then tokens, shape (d_in + 1,).
    tokens : int
        Not for anybody else.
    """

    totals: NDArray[np.int64]
    tokens: int = 0


class _ClippedRecording:
    def __init__(
        self, kind: ColumnKind, scale: NDArray[np.float64] | None, width: int, norm: int
    ) -> None:
        self._kind, self._scale, self._norm = kind, scale, norm
        self._sample = np.zeros(width + 1)
        self._sums = ClippedSums(np.zeros(width + 1, dtype=np.int64))

    def add(self, inputs: Tensor) -> None:
        self._sample[:-1] += self._kind.sums(inputs).double().cpu().numpy()
        self._sample[-1] += inputs.shape[:-1].numel()

    def end_sample(self) -> None:
        if not np.isfinite(self._sample).all():
            raise WireError("inputs are not finite.")
        if self._scale is not None:
            self._sums.totals += clipped(self._sample / self._scale, self._norm)
        self._sample[:] = 0

    def close(self) -> ClippedSums:
        return self._sums


class ClippedKind(StatisticKind[ClippedSums]):
    """A statistic of columns, of which each sample adds a vector of limited length.

    Parameters
    ----------
    kind : ColumnKind
        What is summed.
    scales : Mapping[str, NDArray[np.float64]]
        Linear -> what a unit is, columns and then tokens; of others nothing is recorded.
    norms : Mapping[str, int]
        Linear -> the most units that a sample's vector may be long.
    """

    name = "clipped"

    def __init__(
        self,
        kind: ColumnKind,
        scales: Mapping[str, NDArray[np.float64]],
        norms: Mapping[str, int],
    ) -> None:
        self._kind, self._scales, self._norms = kind, scales, norms

    def start(self, width: int) -> _ClippedRecording:
        """Return a record that keeps nothing: it must be known of which input it is."""
        return _ClippedRecording(self._kind, None, width, 0)

    def start_at(self, linear: str, width: int) -> _ClippedRecording:
        """See `StatisticKind.start_at`."""
        scale = self._scales.get(linear)
        return _ClippedRecording(self._kind, scale, width, self._norms.get(linear, 0))

    def arrays(self, statistic: ClippedSums) -> dict[str, NDArray[Any]]:
        """Refuse: without noise they are for nobody else."""
        raise RuntimeError("sums without noise are not sent.")

    def read(self, arrays: Mapping[str, NDArray[Any]], width: int, tokens: int) -> ClippedSums:
        """Refuse, as `arrays`."""
        raise RuntimeError("sums without noise are not sent.")

    def add(self, first: ClippedSums, second: ClippedSums) -> ClippedSums:
        """Return the sums of both."""
        return ClippedSums(first.totals + second.totals, first.tokens + second.tokens)


class NoisyExchange(BlockExchange):
    """Ask every client for sums with noise, and let another exchange make of them what it does.

    Parameters
    ----------
    inner : BlockExchange
        The exchange without noise, all of whose answers are one statistic of columns.
    kind : ColumnKind
        That statistic.
    """

    shares_inputs = True
    once = True

    def __init__(self, inner: BlockExchange, kind: ColumnKind) -> None:
        super().__init__(inner.config)
        self.inner, self.kind = inner, kind
        self.payload, self.prunes, self.columns = inner.payload, inner.prunes, kind
        self._scales: dict[int, bytes] = {}
        self._here: Plan | None = None

    def plan(self, model: PublicModel) -> Plan:
        """Return which inputs are sent: beside the texts as it was found there."""
        return self._here or Plan.of(model)

    @property
    def form(self) -> str:
        """The format of the payloads, with its version."""
        return f"fedprune.noisy-{self.kind.name}.v1"

    # ------------------------------------------------------------------------ beside the texts

    def hear(self, walk: BlockWalk, data: bytes) -> None:
        """Take the scale of a block; whatever it is, what a sample adds stays within its length."""
        self._here = Plan.here(walk.model)
        self._scales[walk.position] = data

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return this client's sums of the block where a walk stands, with its noise."""
        block, plan = walk.position, Plan.here(walk.model)
        if walk.limits.batch_size != 1 or local_prefix:
            raise ReplyRefusedError("samples must run alone, through blocks that are no client's.")
        scales, norms = self._measures(plan, block)
        kind = ClippedKind(self.kind, scales, norms)
        groups = shared_inputs(walk.observe([kind]).linears[kind.name])
        if {linears for linears, _ in groups} != set(plan.inputs[block]):
            raise ModelError(
                f"block {block}: its linears share inputs in another way with these texts than "
                "with a probe, so that a sample's part cannot be limited."
            )
        width = noise_width(self.config)
        sent = set(plan.sent(block))
        noisy = {
            f"{linears[0]}.{_NOISY}": sums.totals + discrete_gaussian(len(sums.totals), width)
            for linears, sums in groups
            if linears in sent and isinstance(sums, ClippedSums)
        }
        return Answer(encode_arrays(noisy))

    def _measures(
        self, plan: Plan, block: int
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, int]]:
        """Return what a unit is of each linear's input, and how many a sample may be long."""
        data, total = self._scales.get(block, b""), plan.total
        if not data:
            raise ReplyRefusedError(f"the order brings no scale of block {block}.")
        try:
            found = decode_arrays(data, plan.specs(block, _SCALE, "float32"))
        except WireError as error:
            raise ReplyRefusedError(f"the scale of block {block}: {error}") from None
        units = unit(total, self.config.privacy.clip)
        scales: dict[str, NDArray[np.float64]] = {}
        norms: dict[str, int] = {}
        for linears in plan.sent(block):
            scale = found[f"{linears[0]}.{_SCALE}"].astype(np.float64) / units
            if not (np.isfinite(scale).all() and scale.min() > 0):
                raise ReplyRefusedError(f"the scale of block {block} must be finite and above 0.")
            norm = part_norm(plan.columns(block, linears), total)
            scales |= dict.fromkeys(linears, scale)
            norms |= dict.fromkeys(linears, norm)
        return scales, norms

    @property
    def keeps_local_model(self) -> bool:
        """Whether a client's own changes make its own pruned model: they would not be noisy."""
        return False

    def read_update(self, place: BlockPlace, data: bytes) -> dict[str, Change]:
        """See `BlockExchange.read_update`."""
        return self.inner.read_update(place, data)

    def read_result(
        self, shapes: Shapes, block: int, num_blocks: int, data: bytes
    ) -> dict[str, Change]:
        """See `BlockExchange.read_result`."""
        return self.inner.read_result(shapes, block, num_blocks, data)

    def check_result(self, changes: Mapping[str, Change], block: int, num_blocks: int) -> None:
        """See `BlockExchange.check_result`."""
        self.inner.check_result(changes, block, num_blocks)

    # --------------------------------------------------------------------------- on the server

    def told(self, model: PublicModel, block: int) -> bytes:
        """Return the scale of a block: what public text makes of each number, a sample of it."""
        plan = Plan.of(model)
        return encode_arrays(
            {
                f"{linears[0]}.{_SCALE}": self.scale(model, block, linears)
                for linears in plan.sent(block)
            }
        )

    def scale(self, model: PublicModel, block: int, linears: Sequence[str]) -> NDArray[np.float32]:
        """Return what public text makes of each number of an input in a sample."""
        public = _public_text(model)
        known = public.statistics[block].get(linears[0])
        width = model.shapes[block][linears[0]][1]
        if not isinstance(known, ColumnSums) or not known.tokens:
            return np.ones(width + 1, dtype=np.float32)  # public text never reached it
        samples = public.tokens / self.config.pruner.seq_len
        sums = np.append(known.sums.double().cpu().numpy(), known.tokens) / samples
        sums[:-1] = np.maximum(sums[:-1], _FLOOR * sums[:-1].mean())
        return np.maximum(sums, 1e-20).astype(np.float32)

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """Return the most bytes that a client's sums of a block can take."""
        return most_bytes(Plan.of(model).specs(block, _NOISY, "int64"))

    def aggregator(self, task: BlockTask) -> "Aggregator[Any, Any]":
        """Return empty sums for a block."""
        return (NoisyBlock if self.prunes else NoisySums)(self, task)

    def result_spec(self, block: int, num_blocks: int) -> BlockSpec:
        """See `BlockExchange.result_spec`."""
        return self.inner.result_spec(block, num_blocks)

    def promise(self, model: PublicModel, samples: int, clients: int) -> dict[str, Any]:
        """Return what is guaranteed about each sample, and how much noise that takes."""
        found, plan = guarantee(self.config), Plan.of(model)
        return {
            **asdict(found),
            "clip": self.config.privacy.clip,
            "columns": plan.total,
            "public_inputs": sorted(plan.public),
            "samples": samples,
            "clients": clients,
            "relative_noise": self.relative_noise(model, samples, clients),
            "samples_for_a_tenth": math.ceil(10 * self.relative_noise(model, 1, clients)),
        }

    def relative_noise(self, model: PublicModel, samples: int, clients: int) -> float:
        """Return the noise of a column in multiples of what samples like public text make of it.

        Parameters
        ----------
        model : PublicModel
            How many columns there are.
        samples : int
            Of all clients.
        clients : int
            In the sum.
        """
        promise, total = guarantee(self.config), Plan.of(model).total
        width = promise.multiplier * math.sqrt(max(1.0, clients / promise.shares))
        return width * self.config.privacy.clip * math.sqrt(total) / max(1, samples)


class NoisySums(Aggregator[Arrays, Any]):
    """Adds up sums with noise, whole numbers of either sign.

    Attributes
    ----------
    clients : int
        How many clients are in the sums.
    width : float
        How wide the noise of each of them is, in units.
    """

    sums_integers = True

    def __init__(self, exchange: NoisyExchange, task: BlockTask) -> None:
        self.noisy, self.task = exchange, task
        self.plan = exchange.plan(task.model)
        self.inner = exchange.inner.aggregator(task)
        self._specs = self.plan.specs(task.block, _NOISY, "int64")
        self._total = {
            name: np.zeros(spec.shape, dtype=np.int64) for name, spec in self._specs.items()
        }
        self.clients = 0
        self.width = noise_width(exchange.config)

    def check(self, payload: bytes, client: Contributor) -> Arrays:
        """Decode sums, which must be what samples and noise can come to."""
        found = decode_arrays(payload, self._specs)
        self._check(found, client, 1)
        return found

    def _check(self, found: Mapping[str, NDArray[Any]], client: Contributor, clients: int) -> None:
        """Raise ``WireError`` if the sums of so many clients cannot be these."""
        total = self.plan.total
        width = self.width * math.sqrt(clients)
        samples = -(-client.tokens // self.noisy.config.pruner.seq_len) or 1 << 30
        for linears in self.plan.sent(self.task.block):
            norm = part_norm(self.plan.columns(self.task.block, linears), total)
            sums, most = found[f"{linears[0]}.{_NOISY}"], samples * norm + _SIGMAS * width
            if not (sums.min() >= -_SIGMAS * width and sums.max() <= most):
                raise WireError(
                    f"the sums of {linears[0]} are beyond what its samples and noise can make."
                )

    def add(self, answer: Arrays, client: Contributor) -> None:
        """Add one client's checked sums."""
        for name, sums in answer.items():
            self._total[name] += sums
        self.clients += 1

    def layout(self, clients: int) -> Layout:
        """Return the words of the sums of each input."""
        return {name: WordSpec(spec.shape[0], 64) for name, spec in self._specs.items()}

    def words(self, answer: Arrays, client: Contributor, clients: int) -> Words:
        """Return a client's sums as words; noise is in them already."""
        return {name: signed(answer[name]) for name in self._specs}

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Take the sums of clients' words."""
        found = {name: total[name].view(np.int64) for name in self._specs}
        self._check(found, all_together(clients), len(clients))
        self._total = {name: sums.copy() for name, sums in found.items()}
        self.clients = len(clients)

    def close(self) -> Any:
        """Let the exchange without noise close on what the sums come to."""
        self.inner.add_pooled(self.pooled(), self.clients)  # type: ignore[attr-defined]
        return self.inner.close()

    def pooled(self) -> Pooled:
        """Return what the sums come to: input -> statistic, that of public text among them."""
        block, model, found = self.task.block, self.task.model, dict[tuple[str, ...], ColumnSums]()
        for linears in self.plan.inputs[block]:
            public = model.public.statistics[block].get(linears[0]) if model.public else None
            if linears in self.plan.sent(block):
                found[linears] = self._estimated(linears)
            elif isinstance(public, ColumnSums):
                found[linears] = self.noisy.kind.rounded(_exact(public.sums), public.tokens, "cpu")
        return found

    def _estimated(self, linears: tuple[str, ...]) -> ColumnSums:
        config, model = self.noisy.config, self.task.model
        units = unit(self.plan.total, config.privacy.clip)
        deviation = self.width * math.sqrt(max(1, self.clients)) / units
        scale = self.noisy.scale(model, self.task.block, linears).astype(np.float64)
        sums = self._total[f"{linears[0]}.{_NOISY}"] / units
        tokens = round(float(sums[-1] * scale[-1]))
        columns = estimate(sums[:-1], deviation) * scale[:-1]
        if linears[0] not in model.routed(self.task.block):
            tokens = max(1, tokens)
        if tokens <= 0:
            return self.noisy.kind.rounded(ExactSums(len(columns)), 0, "cpu")
        return self.noisy.kind.rounded(_exact(torch.from_numpy(columns)), tokens, "cpu")

    def state(self) -> Arrays:
        """Return the sums so far."""
        return {"clients": numbers(self.clients), **self._total}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another's."""
        (self.clients,) = (int(n) for n in arrays["clients"])
        for name, sums in self._total.items():
            sums[:] = arrays[name]


class NoisyBlock(NoisySums, BlockAggregator[Arrays]):
    """The same of a block that is pruned."""

    def __init__(self, exchange: NoisyExchange, task: BlockTask) -> None:
        BlockAggregator.__init__(self, exchange, task)
        NoisySums.__init__(self, exchange, task)

    def update(self, result: BlockResult) -> bytes:
        """Encode what clients are told of the block, as without noise."""
        if not isinstance(self.inner, BlockAggregator):
            raise TypeError(f"a block is closed by a BlockAggregator, got {self.inner}.")
        return self.inner.update(result)


def estimate(sums: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    """Return what sums with noise most likely were, none negative.

    They are multiples of what public text makes of each column. As far as their scatter is no
    larger than the noise's they are drawn to their mean (James and Stein, 1961), so that the less
    the noise leaves of the clients' texts, the more remains of the public one.

    Parameters
    ----------
    sums : NDArray[np.float64]
        Shape (columns,).
    deviation : float
        Of the noise on each of them.
    """
    mean = max(float(sums.mean()), deviation / math.sqrt(len(sums)))
    # Noise scatters by chance, too: what two standard deviations of that explain is none of texts.
    chance = deviation**2 * (1 + _CHANCE * math.sqrt(2 / len(sums)))
    spread = max(0.0, float(np.square(sums - mean).mean()) - chance)
    weight = spread / (spread + deviation**2) if spread else 0.0
    return np.maximum(mean + weight * (sums - mean), 0.0)


def _exact(sums: Tensor) -> ExactSums:
    found = ExactSums(sums.numel())
    largest = np.nextafter(np.float32(LIMIT), np.float32(0))
    found.add(np.minimum(sums.cpu().numpy(), largest).astype(np.float32))
    return found


def with_noise(exchange: BlockExchange) -> BlockExchange:
    """Return an exchange as `privacy` wants it: itself, or with noise.

    Raises
    ------
    ConfigError
        If what a sample adds to its answers has no limit, or the run's schedule lets it grow.
    """
    config = exchange.config
    if config.privacy.epsilon is None:
        return exchange
    kind = exchange.columns
    if kind is None:
        raise ConfigError(
            f"`privacy.epsilon` must be null with strategy={config.strategy.name} and pruner="
            f"{config.pruner.name}, got {config.privacy.epsilon:g}: what a text adds to its "
            f"{exchange.payload} has no limit, or noise would leave nothing of it. Set "
            f"strategy={strategy_for('wanda')} pruner=wanda, or privacy.epsilon=null."
        )
    if exchange.prunes and config.schedule.name == "one_shot" and config.schedule.prefix == "local":
        raise ConfigError(
            "`schedule.prefix` must be 'dense' with `privacy.epsilon` and schedule=one_shot, got "
            "'local': behind a client's own pruned blocks every sample of it is seen through all "
            "others. Set schedule.prefix=dense, or schedule=iterative."
        )
    return NoisyExchange(exchange, kind)
