"""Sums with noise: a guarantee for each calibration sample, whatever else an observer knows.

What a sample adds is a vector of limited length (:mod:`fedprune.methods.limited`); vectors add up
over samples and clients, and noise is added before they leave, so that all messages of a run are
one release (:mod:`fedprune.privacy.noise`), and what is asked later may depend on earlier
answers.

Any exchange that says of which statistics its answers are (`BlockExchange.summed`) can be held so.
It knows nothing of it: its aggregator gets estimates of the sums, as of one client.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config import RunConfig
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
from fedprune.methods.limited import (
    ClippedSums,
    Plan,
    Share,
    Shortener,
    public_means,
    public_text,
    scale_of,
)
from fedprune.methods.public_model import PublicModel
from fedprune.methods.state import Arrays, numbers
from fedprune.methods.word_sums import Layout, Words, signed
from fedprune.privacy.noise import NORM_BITS, Guarantee, discrete_gaussian, own_scale, unit
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.block_kinds import BlockKind
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.statistics import ColumnKind, ColumnSums, shared_inputs
from fedprune.wire.arrays import decode_arrays, encode_arrays, most_bytes
from fedprune.wire.changes import Change
from fedprune.wire.sums import LIMIT, ExactSums

_CHANCE = 2.0
_SIGMAS = 40  # noise is never further out


_guarantee = lru_cache(maxsize=64)(Guarantee.of)


def guarantee(config: RunConfig) -> Guarantee:
    """Return what a configuration with `privacy.epsilon` promises.

    Raises ConfigError if there is no `privacy.epsilon`, or the accountant is not installed.
    """
    privacy = config.privacy
    if privacy.epsilon is None:
        raise ConfigError("`privacy.epsilon` is null: there is no guarantee to tell.")
    return _guarantee(privacy.epsilon, privacy.delta, privacy.noise_shares)


def noise_width(config: RunConfig) -> float:
    """Return how wide the noise is that a client adds to its own sums, in units."""
    promise = guarantee(config)
    return own_scale(promise.multiplier * (1 << NORM_BITS), promise.shares)


class NoisyExchange(BlockExchange):
    """Ask every client for sums with noise, and let another exchange make of them what it does.

    `inner`: the exchange without noise, which says of which statistics its answers are.
    """

    once = True

    def __init__(self, inner: BlockExchange) -> None:
        super().__init__(inner.config)
        self.inner, self.summed, self.collects = inner, inner.summed, inner.collects
        self.payload, self.prunes, self.together = inner.payload, inner.prunes, inner.together
        self.shares_inputs = inner.shares_inputs
        self._scales: dict[int, bytes] = {}
        self._plan: Plan | None = None
        self._kept: dict[str, Any] = {}

    def plan(self, model: PublicModel) -> Plan:
        """Return what is sent of this exchange's model: beside the texts as it was found there."""
        if self._plan is None:
            self._plan = Plan.of(self.summed, model)
        return self._plan

    @property
    def form(self) -> str:
        return "fedprune.noisy.v2"

    # ------------------------------------------------------------------------ beside the texts

    def hear(self, walk: BlockWalk, data: bytes) -> None:
        """Take the scale of a block; whatever it is, what a sample adds stays within its length."""
        self._plan = self._plan or Plan.here(self.summed, walk.model)
        self._scales[walk.position] = data

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return this client's sums of the block where a walk stands, with its noise."""
        block, plan = walk.position, self._plan or Plan.here(self.summed, walk.model)
        if walk.limits.batch_size != 1 or local_prefix:
            raise ReplyRefusedError("samples must run alone, through blocks that are no client's.")
        if block == 0:
            self._kept.clear()
        scales = self._read_scales(plan, block)
        inputs, blocks = Shortener(plan, block, scales, self.config.privacy.clip).kinds()
        observed = walk.observe(inputs, blocks, self._kept)
        totals = {key: sums for found in observed.block.values() for key, sums in found.items()}
        for kind, found in observed.linears.items():
            groups = shared_inputs(found)
            if {linears for linears, _ in groups} != set(plan.inputs[block]):
                raise ModelError(
                    f"block {block}: its linears share inputs in another way with these texts than "
                    "with a probe, so that a sample's part cannot be limited."
                )
            known = dict(groups)
            for share in plan.shares[block]:
                sums = known.get(share.linears)
                if share.kind == kind and isinstance(sums, ClippedSums):
                    totals[share.key] = sums.totals
        width = noise_width(self.config)
        noisy = {
            share.key: totals[share.key] + discrete_gaussian(share.count, width)
            for share in plan.shares[block]
        }
        return Answer(encode_arrays(noisy))

    def _read_scales(self, plan: Plan, block: int) -> dict[str, NDArray[Any]]:
        """Return by what the numbers of each share are measured, as the server says."""
        data = self._scales.get(block, b"")
        if not data:
            raise ReplyRefusedError(f"the order brings no scale of block {block}.")
        try:
            found = decode_arrays(data, plan.specs(block, "float32"))
        except WireError as error:
            raise ReplyRefusedError(f"the scale of block {block}: {error}") from None
        if not all(np.isfinite(scale).all() and scale.min() > 0 for scale in found.values()):
            raise ReplyRefusedError(f"the scale of block {block} must be finite and above 0.")
        return dict(found)

    @property
    def keeps_local_model(self) -> bool:
        """Whether a client's own changes make its own pruned model: they would not be noisy."""
        return False

    def read_update(self, place: BlockPlace, data: bytes) -> dict[str, Change]:
        return self.inner.read_update(place, data)

    def check_result(self, changes: Mapping[str, Change], block: int, num_blocks: int) -> None:
        self.inner.check_result(changes, block, num_blocks)

    # --------------------------------------------------------------------------- on the server

    def told(self, model: PublicModel, block: int) -> bytes:
        """Return the scale of a block: by what public text makes of each number of a sample."""
        shares = self.plan(model).shares[block]
        return encode_arrays({share.key: self.scale(model, block, share) for share in shares})

    def means(self, model: PublicModel, block: int, share: Share) -> NDArray[np.float64]:
        """Return what public text makes of each number of a share in a sample."""
        length = self.config.pruner.seq_len
        return public_means(self.plan(model), model, block, share, length)

    def scale(self, model: PublicModel, block: int, share: Share) -> NDArray[np.float32]:
        """Return by what the numbers of a share are measured."""
        return scale_of(self.means(model, block, share), share)

    def most_bytes(self, model: PublicModel, block: int) -> int:
        return most_bytes(self.plan(model).specs(block, "int64"))

    def aggregator(self, task: BlockTask) -> "Aggregator[Any, Any]":
        return (NoisyBlock if self.prunes else NoisySums)(self, task)

    def result_spec(self, block: int, num_blocks: int) -> BlockSpec:
        return self.inner.result_spec(block, num_blocks)

    def promise(self, model: PublicModel, samples: int, clients: int) -> dict[str, Any]:
        """Return what is guaranteed about each sample, and how much noise that takes."""
        found, plan = guarantee(self.config), self.plan(model)
        return {
            **asdict(found),
            "clip": self.config.privacy.clip,
            "statistics": list(plan.kinds),
            "numbers": plan.total,
            "public_inputs": sorted(plan.public),
            "samples": samples,
            "clients": clients,
            "relative_noise": self.relative_noise(model, samples, clients),
            "samples_for_a_tenth": math.ceil(10 * self.relative_noise(model, 1, clients)),
        }

    def relative_noise(self, model: PublicModel, samples: int, clients: int) -> float:
        """Return the noise of a number in multiples of what samples like public text make of it."""
        promise, total = guarantee(self.config), self.plan(model).total
        width = promise.multiplier * math.sqrt(max(1.0, clients / promise.shares))
        return width * self.config.privacy.clip * math.sqrt(total) / max(1, samples)

    def announcement(self, model: PublicModel) -> str:
        return self.inner.announcement(model)


class NoisySums(Aggregator[Arrays, Any]):
    """Adds up sums with noise, whole numbers of either sign.

    `clients`, `tokens`: how many clients are in the sums, and the tokens that they promised.
    `width`: how wide the noise of each of them is, in units.
    """

    sums_integers = True

    def __init__(self, exchange: NoisyExchange, task: BlockTask) -> None:
        self.noisy, self.task = exchange, task
        self.plan = exchange.plan(task.model)
        self.shares = self.plan.shares[task.block]
        self.inner = exchange.inner.aggregator(task)
        self._specs = self.plan.specs(task.block, "int64")
        self._total = {
            name: np.zeros(spec.shape, dtype=np.int64) for name, spec in self._specs.items()
        }
        self.clients = self.tokens = 0
        self.width = noise_width(exchange.config)

    def check(self, payload: bytes, client: Contributor) -> Arrays:
        """Decode sums, which must be what samples and noise can come to."""
        found = decode_arrays(payload, self._specs)
        self._check(found, client, 1)
        return found

    def _check(self, found: Mapping[str, NDArray[Any]], client: Contributor, clients: int) -> None:
        """Raise ``WireError`` if the sums of so many clients cannot be these."""
        width = self.width * math.sqrt(clients)
        samples = -(-client.tokens // self.noisy.config.pruner.seq_len) or 1 << 30
        for share in self.shares:
            sums, most = found[share.key], samples * self.plan.norm(share) + _SIGMAS * width
            if not (sums.min() >= -_SIGMAS * width and sums.max() <= most):
                raise WireError(
                    f"the sums of {share.name} are beyond what its samples and noise can make."
                )

    def add(self, answer: Arrays, client: Contributor) -> None:
        for name, sums in answer.items():
            self._total[name] += sums
        self.clients += 1
        self.tokens += client.tokens

    def layout(self, clients: int) -> Layout:
        """Return the words of the sums of each share."""
        return {name: WordSpec(spec.shape[0], 64) for name, spec in self._specs.items()}

    def words(self, answer: Arrays, client: Contributor, clients: int) -> Words:
        """Return a client's sums as words; noise is in them already."""
        return {name: signed(answer[name]) for name in self._specs}

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        found = {name: total[name].view(np.int64) for name in self._specs}
        everybody = all_together(clients)
        self._check(found, everybody, len(clients))
        self._total = {name: sums.copy() for name, sums in found.items()}
        self.clients, self.tokens = len(clients), everybody.tokens

    def close(self) -> Any:
        """Let the exchange without noise close on what the sums come to."""
        self.inner.add_pooled(self.pooled(), self.clients)
        return self.inner.close()

    def pooled(self) -> Pooled:
        """Return what the sums come to, public text's inputs among them."""
        columns = [kind for kind in self.plan.kinds.values() if isinstance(kind, ColumnKind)]
        blocks = [kind for kind in self.plan.kinds.values() if isinstance(kind, BlockKind)]
        return Pooled(
            {kind.name: self._inputs(kind) for kind in columns},
            {kind.name: self._of_block(kind) for kind in blocks},
        )

    def _inputs(self, kind: ColumnKind) -> dict[tuple[str, ...], ColumnSums]:
        block, model = self.task.block, self.task.model
        sent = {share.linears: share for share in self.shares if share.kind == kind.name}
        found: dict[tuple[str, ...], ColumnSums] = {}
        for linears in self.plan.inputs[block]:
            if linears in sent:
                found[linears] = self._estimated(kind, sent[linears])
                continue
            public = public_text(model).observed[block].linears[kind.name].get(linears[0])
            if isinstance(public, ColumnSums):
                found[linears] = kind.rounded(_exact(public.sums), public.tokens, "cpu")
        return found

    def _estimated(self, kind: ColumnKind, share: Share) -> ColumnSums:
        model, block = self.task.model, self.task.block
        scale = self.noisy.scale(model, block, share).astype(np.float64)
        sums, deviation = self._measured(share)
        tokens = round(float(sums[-1] * scale[-1]))
        columns = estimate(sums[:-1], deviation) * scale[:-1]
        if share.linears[0] not in model.routed(block):
            tokens = max(1, tokens)
        if tokens <= 0:
            return kind.rounded(ExactSums(len(columns)), 0, "cpu")
        return kind.rounded(_exact(torch.from_numpy(columns)), tokens, "cpu")

    def _of_block(self, kind: BlockKind) -> Arrays:
        model, block = self.task.model, self.task.block
        found: dict[str, NDArray[np.float64]] = {}
        for share in self.shares:
            if share.kind == kind.name:
                means = self.noisy.means(model, block, share)
                scale = scale_of(means, share).astype(np.float64)
                expected = means / scale if means.any() else None
                found[share.name] = estimate(*self._measured(share), expected) * scale
        return kind.from_measures(found, model.sites[block], max(1, self.tokens))

    def _measured(self, share: Share) -> tuple[NDArray[np.float64], float]:
        """Return the sums of a share in multiples of its scale, and the deviation of the noise."""
        units = unit(self.plan.total, self.noisy.config.privacy.clip)
        deviation = self.width * math.sqrt(max(1, self.clients)) / units
        return self._total[share.key] / units, deviation

    def state(self) -> Arrays:
        return {"clients": numbers(self.clients, self.tokens), **self._total}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another's."""
        self.clients, self.tokens = (int(n) for n in arrays["clients"])
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


def estimate(
    sums: NDArray[np.float64], deviation: float, expected: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return what sums with noise most likely were, none negative.

    As far as they differ from a multiple of what is expected by no more than noise does, they are
    drawn to it (James and Stein, 1961), so that the less the noise leaves of the clients' texts,
    the more remains of the public one.

    `sums`: shape (numbers,). `expected`: what public text makes of them, up to a factor, shape
    (numbers,); by default all alike.
    """
    like = np.ones(len(sums)) if expected is None else expected
    size = float(np.square(like).sum())
    mean = max(float((sums * like).sum()) / size, deviation / math.sqrt(size)) * like
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


def with_noise(exchange: BlockExchange, way: str) -> BlockExchange:
    """Return an exchange as `privacy` wants it: itself, or with noise.

    Raises ConfigError, with the ``way`` out, if what a sample adds has no limit, or a schedule's.
    """
    config = exchange.config
    if config.privacy.epsilon is None:
        return exchange
    if not exchange.summed:
        raise ConfigError(
            f"`privacy.epsilon` must be null with strategy={config.strategy.name} as it is set, "
            f"got {config.privacy.epsilon:g}: what a text adds to its {exchange.payload} has no "
            f"limit, or is so many numbers that noise would leave nothing of them. {way}"
        )
    if exchange.prunes and config.schedule.name == "one_shot" and config.schedule.prefix == "local":
        raise ConfigError(
            "`schedule.prefix` must be 'dense' with `privacy.epsilon` and schedule=one_shot, got "
            "'local': behind a client's own pruned blocks every sample of it is seen through all "
            "others. Set schedule.prefix=dense, or schedule=iterative."
        )
    return NoisyExchange(exchange)
