"""One statistic of a collection: how a client's answer about it travels, and what is kept of it.

What is kept of a block is named arrays, as they stand in a statistics folder
(:mod:`fedprune.methods.statistics_folder`): for each distinct input ``{input}.{array}``, where the
input is called by the first linear that reads it, or ``{array}`` of the block itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.config import RunConfig
from fedprune.errors import QuorumError
from fedprune.methods.exchange import Aggregator, BlockTask, Contributor, Pooled
from fedprune.methods.fixed_point import from_fixed, to_fixed
from fedprune.methods.inputs import (
    ColumnAggregator,
    all_together,
    column_bytes,
    encode_statistics,
)
from fedprune.methods.moment_sums import MomentSums
from fedprune.methods.moments import MomentPool, input_moments, plan_inputs
from fedprune.methods.public_model import PublicModel
from fedprune.methods.state import Arrays
from fedprune.methods.statistics import StatisticSums, encode_statistic, expected
from fedprune.methods.word_sums import Layout, Words, roomy
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.block_kinds import BlockKind, BlockSite
from fedprune.pruning.blocks import Observed
from fedprune.pruning.statistics import Statistic, StatisticKind, get_kind
from fedprune.wire.arrays import ArraySpec, decode_arrays, encode_arrays, most_bytes
from fedprune.wire.moments import Triangle, encode_moments

TOKENS = "tokens"
Sums = Aggregator[Any, Arrays]


class Part(ABC):
    """One statistic of a collection, on both sides."""

    kind: StatisticKind[Any] | BlockKind

    @property
    def name(self) -> str:
        """The kind's name."""
        return self.kind.name

    @abstractmethod
    def encode(self, observed: Observed, site: BlockSite) -> bytes:
        """Return the bytes of what a client recorded of a block."""

    @abstractmethod
    def most_bytes(self, model: PublicModel, block: int) -> int:
        """Return the most bytes that they can be."""

    @abstractmethod
    def sums(self, task: BlockTask) -> Sums:
        """Return empty sums for a block, which close to what is kept of it."""


def make_part(kind: StatisticKind[Any] | BlockKind, config: RunConfig) -> Part:
    """Return how a kind is collected."""
    if isinstance(kind, BlockKind):
        return BlockPart(kind)
    found = {"columns": ColumnPart, "moments": MomentPart}.get(kind.name, InputPart)
    return found(kind, config)


def kept(kind: StatisticKind[Any], statistic: Statistic) -> Arrays:
    """Return what is kept of an input: the kind's arrays and the number of tokens."""
    return {**kind.arrays(statistic), TOKENS: np.array([statistic.tokens])}


def _named(inputs: Mapping[str, Arrays]) -> Arrays:
    return {
        f"{name}.{array}": values
        for name, arrays in inputs.items()
        for array, values in arrays.items()
    }


class InputPart(Part):
    """Any statistic of inputs: its arrays as the kind makes them, added by tokens."""

    kind: StatisticKind[Any]

    def __init__(self, kind: StatisticKind[Any], config: RunConfig) -> None:
        self.kind, self.config = kind, config

    def encode(self, observed: Observed, site: BlockSite) -> bytes:
        """See `Part.encode`."""
        return encode_statistic(self.kind, observed.linears[self.name])

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """See `Part.most_bytes`."""
        return most_bytes(expected(self.kind, model.inputs[block], model.shapes[block]))

    def sums(self, task: BlockTask) -> Sums:
        """See `Part.sums`."""
        return _InputSums(task, self.kind)


class _InputSums(StatisticSums[Arrays]):
    def close(self) -> Arrays:
        return _named({names[0]: kept(self.kind, found) for names, found in self.results()})


class ColumnPart(InputPart):
    """Sums of squares: in the fewest bytes, and pooled as `strategy.pooling` says."""

    def encode(self, observed: Observed, site: BlockSite) -> bytes:
        """See `Part.encode`."""
        return encode_statistics(observed.linears[self.name])

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """See `Part.most_bytes`."""
        return column_bytes(model.shapes[block])

    def sums(self, task: BlockTask) -> Sums:
        """See `Part.sums`."""
        return _ColumnSums(task, self.config.strategy.pooling)


class _ColumnSums(ColumnAggregator[Arrays]):
    def close(self) -> Arrays:
        found, kind = self.statistics(), get_kind("columns")
        inputs = self.task.model.inputs[self.task.block]
        return _named({names[0]: kept(kind, found[names[0]]) for names in inputs})


class MomentPart(InputPart):
    """Second moments, whole or as sketches (`strategy.moments`), pooled as `strategy.pooling`."""

    def encode(self, observed: Observed, site: BlockSite) -> bytes:
        """See `Part.encode`."""
        found = observed.linears[self.name]
        return encode_moments(input_moments(self.config, site.index, found, site.shapes))

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """See `Part.most_bytes`."""
        return sum(plan.most_bytes for plan in self._plans(model, block))

    def sums(self, task: BlockTask) -> Sums:
        """See `Part.sums`."""
        plans = self._plans(task.model, task.block)
        return _Moments(task, self.config.strategy.pooling, plans)

    def _plans(self, model: PublicModel, block: int) -> Any:
        return plan_inputs(self.config, block, model.inputs[block], model.shapes[block])


class _Moments(MomentSums[Arrays]):
    def close(self) -> Arrays:
        found: dict[str, Arrays] = {}
        for linears, plan in self.plans.items():
            if linears in self.columns:
                found[linears[0]] = kept(get_kind("columns"), self.columns[linears].statistic())
            else:
                found[linears[0]] = _kept_moments(self.moments.pop(linears), plan.seed)
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


class BlockPart(Part):
    """A statistic of the whole block."""

    kind: BlockKind

    def __init__(self, kind: BlockKind) -> None:
        self.kind = kind

    def encode(self, observed: Observed, site: BlockSite) -> bytes:
        """See `Part.encode`."""
        return encode_arrays(observed.block[self.name])

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """See `Part.most_bytes`."""
        return most_bytes(self.kind.specs(model.sites[block]))

    def sums(self, task: BlockTask) -> Sums:
        """See `Part.sums`."""
        return _BlockSums(task, self.kind)


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
