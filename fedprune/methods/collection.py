"""One pass over the dense model that gathers several statistics: collect once, solve many.

Clients see the dense model, so that what they send does not depend on what is made of it later:
one collection serves every sparsity, pattern, allocation and solver
(:mod:`fedprune.methods.statistics_folder`).

What is kept of a block is named arrays, as they stand in a statistics folder: for each distinct
input ``{input}.{array}``, where the input is called by the first linear that reads it, or
``{array}`` of the block itself.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.config import RunConfig
from fedprune.config.schema import PAYLOADS
from fedprune.errors import QuorumError, WireError
from fedprune.methods.exchange import (
    Aggregator,
    Answer,
    BlockExchange,
    BlockTask,
    Contributor,
    Pooled,
    can_have_noise,
)
from fedprune.methods.inputs import (
    ColumnAggregator,
    all_together,
    column_bytes,
    encode_statistics,
)
from fedprune.methods.moments import InputPlan, MomentPool, MomentSums, input_moments, plan_inputs
from fedprune.methods.public_model import PublicModel
from fedprune.methods.state import Arrays, CountedSums
from fedprune.methods.statistics import StatisticSums, encode_statistic, expected
from fedprune.methods.word_sums import Layout, Words, from_fixed, part_of, prefixed, roomy, to_fixed
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.block_kinds import BlockKind, BlockSite
from fedprune.pruning.blocks import BlockWalk, Observed
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.kinds import find_kind
from fedprune.pruning.statistics import Statistic, StatisticKind, get_kind
from fedprune.results.text import size_text
from fedprune.wire.arrays import Arrays as Message
from fedprune.wire.arrays import ArraySpec, decode_arrays, encode_arrays, most_bytes
from fedprune.wire.moments import Triangle, encode_moments

TOKENS = "tokens"
Sums = Aggregator[Any, Arrays]


@dataclass(frozen=True)
class Part:
    """One statistic of a collection, on both sides."""

    kind: StatisticKind[Any] | BlockKind
    encode: Callable[[Observed, BlockSite], bytes]  # what a client recorded of a block -> bytes
    most_bytes: Callable[[PublicModel, int], int]  # of a block -> the most bytes that these can be
    sums: Callable[[BlockTask], Sums]  # empty ones, which close to what is kept of the block


def make_part(kind: StatisticKind[Any] | BlockKind, config: RunConfig) -> Part:
    """Return how a kind is collected.

    Sums of squares in the fewest bytes, second moments whole or as sketches (`strategy.moments`),
    both pooled as `strategy.pooling` says; any other as its arrays, added by tokens.
    """
    name = kind.name
    if isinstance(kind, BlockKind):
        return Part(
            kind,
            lambda seen, site: encode_arrays(seen.block[name]),
            lambda model, block: most_bytes(kind.specs(model.sites[block])),
            lambda task: _BlockSums(task, kind),
        )
    if name == "columns":
        return Part(
            kind,
            lambda seen, site: encode_statistics(seen.linears[name]),
            lambda model, block: column_bytes(model.shapes[block]),
            lambda task: _ColumnSums(task, config.strategy.pooling),
        )
    if name == "moments":
        return _moment_part(kind, config)
    return Part(
        kind,
        lambda seen, site: encode_statistic(kind, seen.linears[name]),
        lambda model, block: most_bytes(expected(kind, model.inputs[block], model.shapes[block])),
        lambda task: _InputSums(task, kind),
    )


def _moment_part(kind: StatisticKind[Any], config: RunConfig) -> Part:
    def plans(model: PublicModel, block: int) -> list[InputPlan]:
        return plan_inputs(config, block, model.inputs[block], model.shapes[block])

    def encode(seen: Observed, site: BlockSite) -> bytes:
        found = seen.linears[kind.name]
        return encode_moments(input_moments(config, site.index, found, site.shapes))

    return Part(
        kind,
        encode,
        lambda model, block: sum(plan.most_bytes for plan in plans(model, block)),
        lambda task: _Moments(task, config.strategy.pooling, plans(task.model, task.block)),
    )


def kept(kind: StatisticKind[Any], statistic: Statistic) -> Arrays:
    """Return what is kept of an input: the kind's arrays and the number of tokens."""
    return {**kind.arrays(statistic), TOKENS: np.array([statistic.tokens])}


def _named(inputs: Mapping[str, Arrays]) -> Arrays:
    return {
        f"{name}.{array}": values
        for name, arrays in inputs.items()
        for array, values in arrays.items()
    }


class _InputSums(StatisticSums[Arrays]):
    def close(self) -> Arrays:
        return _named({names[0]: kept(self.kind, found) for names, found in self.results()})


class _ColumnSums(ColumnAggregator[Arrays]):
    def close(self) -> Arrays:
        found, kind = self.statistics(), get_kind("columns")
        return _named({names[0]: kept(kind, found[names[0]]) for names in self.inputs})


class _Moments(MomentSums[Arrays]):
    def close(self) -> Arrays:
        found: dict[str, Arrays] = {}
        for linears, plan in self.plans.items():
            pool = self.pools.pop(linears)
            if isinstance(pool, MomentPool):
                found[linears[0]] = _kept_moments(pool, plan.seed)
            else:
                found[linears[0]] = kept(get_kind("columns"), pool.statistic())
        return _named(found)


def _kept_moments(pool: MomentPool, seed: int) -> Arrays:
    """Return pooled moments: a sketch that is rebuilt when it is read, a triangle, or the whole.

    The whole matrix only where it is not symmetric to the last bit, as rebuilt ones may be: a
    model made of what is kept is the model that the federation would have made.
    """
    sketch = pool.sketch()
    if sketch is not None:
        tokens, numbers = np.array([pool.tokens]), np.array([seed], dtype=np.uint64)
        return {
            "vectors": sketch.vectors,
            "diagonal": sketch.diagonal,
            "seed": numbers,
            TOKENS: tokens,
        }
    matrix, count = pool.result()
    whole = matrix.numpy()
    body = {"matrix": whole}
    if np.array_equal(whole, whole.T):
        body = {"triangle": Triangle.from_matrix(whole).values}
    return {**body, TOKENS: np.array([count])}


def _whole(spec: ArraySpec) -> bool:
    return np.dtype(spec.stored).kind in "iu"


class _BlockSums(Aggregator[Arrays, Arrays]):
    def __init__(self, task: BlockTask, kind: BlockKind) -> None:
        self.sums_integers = kind.exact or kind.elementwise
        self._kind, self._site = kind, task.model.sites[task.block]
        self._specs: dict[str, ArraySpec] = kind.specs(self._site)
        self._total: Arrays | None = None

    def check(self, payload: bytes, client: Contributor) -> Arrays:
        found = decode_arrays(payload, self._specs)
        self._kind.check(found, self._site, client.tokens)
        return found

    def add(self, answer: Arrays, client: Contributor) -> None:
        self._total = dict(answer) if self._total is None else self._kind.add(self._total, answer)

    def layout(self, clients: int) -> Layout:
        return {
            name: WordSpec(prod(spec.shape), 64 if _whole(spec) else 128)
            for name, spec in self._specs.items()
        }

    def words(self, answer: Arrays, client: Contributor, clients: int) -> Words:
        return {
            name: roomy(answer[name], clients, f"{self._kind.name}.{name}")
            if _whole(spec)
            else to_fixed(answer[name], clients)
            for name, spec in self._specs.items()
        }

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        found = {
            name: (
                total[name].view(np.int64).astype(spec.dtype)
                if _whole(spec)
                else from_fixed(total[name])
            ).reshape(spec.shape)
            for name, spec in self._specs.items()
        }
        self._kind.check(found, self._site, all_together(clients).tokens)
        self._total = found

    def add_pooled(self, pooled: Pooled, clients: int) -> None:
        self._total = dict(pooled.block[self._kind.name])

    def close(self) -> Arrays:
        if self._total is None:
            raise QuorumError(f"No client sent '{self._kind.name}': there is nothing to add.")
        return self._total

    def state(self) -> Arrays:
        return dict(self._total or {})

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        if not arrays:
            return
        if set(arrays) != set(self._specs):
            raise ValueError(f"'{self._kind.name}' is {', '.join(self._specs)}.")
        self._total = {name: np.array(arrays[name]) for name in self._specs}


_HEAD_BYTES = 4096  # the names and lengths of a block's statistics


@dataclass(frozen=True)
class BlockStatistics:
    """What a collection found out of a block."""

    block: int
    # ``{kind}.{input}.{array}`` and ``{kind}.{array}`` -> values, as a statistics folder has them
    arrays: Mapping[str, NDArray[Any]]
    clients: int


class Collection(BlockExchange):
    """Ask every client for several statistics of the dense model.

    `kinds`: what is collected; names are looked up (:func:`fedprune.pruning.kinds.find_kind`).
    """

    prunes = False
    payload = "sums"

    def __init__(
        self, config: RunConfig, kinds: Iterable["str | StatisticKind[Any] | BlockKind"]
    ) -> None:
        super().__init__(config)
        found = [find_kind(kind) if isinstance(kind, str) else kind for kind in kinds]
        self.parts: Mapping[str, Part] = {kind.name: make_part(kind, config) for kind in found}
        self.payload = max((kind.payload for kind in found), key=PAYLOADS.index)
        self.together = any(isinstance(kind, BlockKind) and kind.together for kind in found)
        self._inputs = [kind for kind in found if isinstance(kind, StatisticKind)]
        self._blocks = [kind for kind in found if isinstance(kind, BlockKind)]
        self.shares_inputs = bool(self._inputs)
        summed = [kind for kind in found if can_have_noise(kind)]
        self.summed = tuple(summed) if len(summed) == len(found) else ()
        self.collects = tuple(kind.name for kind in found)
        self._kept: dict[str, Any] = {}

    @property
    def form(self) -> str:
        return "fedprune.collection.v1"

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        if walk.position == 0:
            self._kept.clear()
        width = self.config.strategy.max_width
        observed = walk.observe(self._inputs, self._blocks, self._kept, width)
        site = BlockSite.of(walk.model, walk.position)
        sections = {
            name: np.frombuffer(part.encode(observed, site), dtype=np.uint8)
            for name, part in self.parts.items()
        }
        return Answer(encode_arrays(sections))

    def most_bytes(self, model: PublicModel, block: int) -> int:
        return _HEAD_BYTES + sum(part.most_bytes(model, block) for part in self.parts.values())

    def aggregator(self, task: BlockTask) -> "CollectionAggregator":
        return CollectionAggregator(task, self.parts)

    def announcement(self, model: PublicModel) -> str:
        """Say what is collected and what that costs."""
        total = self.total_bytes(model)
        return f"collects {', '.join(self.parts)}: at most {size_text(total)} from every client"


class CollectionAggregator(CountedSums, Aggregator[dict[str, Any], BlockStatistics]):
    """The running sums of every statistic of a block.

    `sums_integers`: whether all of them are sums of integers.
    """

    def __init__(self, task: BlockTask, parts: Mapping[str, Part]) -> None:
        self.task = task
        self._sums = {name: part.sums(task) for name, part in parts.items()}
        self.sums_integers = all(sums.sums_integers for sums in self._sums.values())
        self._most = {name: part.most_bytes(task.model, task.block) for name, part in parts.items()}

    def check(self, payload: bytes, client: Contributor) -> dict[str, Any]:
        """Decode every statistic; all must be there, and nothing else."""
        found: dict[str, Any] = {}
        message = Message(payload, self._sums)
        for name, sums in self._sums.items():
            announced = message.announced(name)
            if announced.nbytes > self._most[name]:
                raise WireError(f"'{name}' can have {self._most[name]} bytes at most.")
            section = message.take(name, announced)
            if section.dtype != np.uint8 or section.ndim != 1:
                raise WireError(f"'{name}' must be bytes.")
            found[name] = sums.check(section.tobytes(), client)
        message.finish()
        return found

    def add(self, answer: dict[str, Any], client: Contributor) -> None:
        for name, found in answer.items():
            self._sums[name].add(found, client)
        self.clients += 1

    def layout(self, clients: int) -> Layout:
        """Return the words of every statistic."""
        return prefixed({name: sums.layout(clients) for name, sums in self._sums.items()})

    def words(self, answer: dict[str, Any], client: Contributor, clients: int) -> Words:
        """Return one client's checked statistics as words."""
        return prefixed(
            {name: sums.words(answer[name], client, clients) for name, sums in self._sums.items()}
        )

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Add the sums of all clients."""
        for name, sums in self._sums.items():
            sums.add_total(part_of(total, name), clients)
        self.clients = len(clients)

    def add_pooled(self, pooled: Pooled, clients: int) -> None:
        for sums in self._sums.values():
            sums.add_pooled(pooled, clients)
        self.clients += clients

    def close(self) -> BlockStatistics:
        """Return the sums of every statistic."""
        arrays = {
            f"{name}.{array}": values
            for name, sums in self._sums.items()
            for array, values in sums.close().items()
        }
        return BlockStatistics(self.task.block, arrays, self.clients)

    def parts(self) -> dict[str, Sums]:
        """Return the sums of every statistic."""
        return self._sums
