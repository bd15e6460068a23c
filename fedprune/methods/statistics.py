"""An exchange about any additive statistic: clients send what a pruner needs, the server adds up.

A method of another package is this exchange and its words, where the statistic and the pruner on it
come from that package too (see ``examples/plugin``).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune.config import RunConfig
from fedprune.errors import WireError
from fedprune.methods.exchange import (
    Answer,
    BlockAggregator,
    BlockExchange,
    BlockResult,
    BlockTask,
    Contributor,
    Pooled,
)
from fedprune.methods.inputs import Linears, PooledInputs, all_together, check_tokens
from fedprune.methods.public_model import PublicModel
from fedprune.methods.sums import StatisticPool
from fedprune.methods.word_sums import part_of
from fedprune.pruning.blocks import BlockWalk, prune_on
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import (
    ColumnKind,
    Statistic,
    StatisticKind,
    get_kind,
    shared_inputs,
)
from fedprune.wire.arrays import ArraySpec, decode_arrays, encode_arrays, most_bytes

R = TypeVar("R")

_TOKENS = "tokens"
_MOST_TOKENS = (1 << 63) - 1

Inputs = Sequence[tuple[str, ...]]


class StatisticExchange(BlockExchange):
    """Ask every client for the statistic that `pruner.name` needs, and prune on the sum.

    A payload is what :func:`encode_statistic` makes.
    """

    payload = "sums"
    shares_inputs = True

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.kind: StatisticKind[Any] = get_kind(make_pruner(config.pruner).needs)
        self.summed = (self.kind,) if isinstance(self.kind, ColumnKind) else ()

    @property
    def form(self) -> str:
        return f"fedprune.{self.kind.name}.v1"

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        statistics = walk.collect(self.kind.name)
        own = {}
        if local_prefix:
            own = prune_on(walk, statistics, make_pruner(self.config.pruner), spec)
        return Answer(encode_statistic(self.kind, statistics), own)

    def most_bytes(self, model: PublicModel, block: int) -> int:
        return most_bytes(expected(self.kind, model.inputs[block], model.shapes[block]))

    def aggregator(self, task: BlockTask) -> "StatisticAggregator":
        return StatisticAggregator(self, task)


def encode_statistic(kind: StatisticKind[Any], statistics: Mapping[str, Statistic]) -> bytes:
    """Encode a client's statistics of a block, of any kind.

    They are, for each distinct input, the arrays of the kind and the number of tokens, named by
    the first linear that reads it: ``self_attn.q_proj.digits``, ``self_attn.q_proj.tokens``.

    Parameters
    ----------
    kind : StatisticKind
        What was recorded.
    statistics : Mapping[str, Statistic]
        Name of the linear -> statistic; linears that share an input share the object.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for linears, found in shared_inputs(statistics):
        parts = {**kind.arrays(found), _TOKENS: np.array([found.tokens])}
        arrays |= {f"{linears[0]}.{name}": part for name, part in parts.items()}
    return encode_arrays(arrays)


def expected(
    kind: StatisticKind[Any], inputs: Inputs, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, ArraySpec]:
    """Return the arrays of a block's statistics: name -> type and shape."""
    return {
        f"{linears[0]}.{name}": spec
        for linears in inputs
        for name, spec in _specs(kind, shapes[linears[0]][1]).items()
    }


def _specs(kind: StatisticKind[Any], width: int) -> dict[str, ArraySpec]:
    """Return the arrays of an input of so many columns: name -> type and shape."""
    empty = kind.start(width)
    empty.add(torch.zeros(1, width))
    arrays = kind.arrays(empty.close())
    return {
        **{name: ArraySpec(str(part.dtype), part.shape) for name, part in arrays.items()},
        _TOKENS: ArraySpec("int64", (1,)),
    }


class StatisticSums(PooledInputs[Statistic, R], Generic[R]):
    """Adds up what clients know of each input; what it comes to is for subclasses to say."""

    def __init__(self, task: BlockTask, kind: StatisticKind[Any]) -> None:
        inputs, shapes = task.model.inputs[task.block], task.model.shapes[task.block]
        super().__init__(task, {one: StatisticPool(kind, shapes[one[0]][1]) for one in inputs})
        self.kind, self.sums_integers = kind, kind.exact
        self._expected = expected(kind, inputs, shapes)

    def check(self, payload: bytes, client: Contributor) -> dict[Linears, Statistic]:
        """Decode statistics, which must be those of the block's inputs."""
        arrays = decode_arrays(payload, self._expected)
        found: dict[Linears, Statistic] = {}
        for linears, pool in self.pools.items():
            prefix = f"{linears[0]}."
            own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
            tokens = int(own.pop(_TOKENS)[0])
            if not 0 <= tokens <= _MOST_TOKENS:
                raise WireError(f"the input of '{linears[0]}' has from 0 to 2**63 - 1 tokens.")
            found[linears] = pool.read(own, tokens)
        self._check_tokens(found, client)
        return found

    def _check_tokens(self, found: Mapping[Linears, Statistic], client: Contributor) -> None:
        check_tokens({linears[0]: one.tokens for linears, one in found.items()}, self.task, client)

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Add the statistic of all clients, which must be of the tokens that they promised."""
        found = {one: pool.read_total(part_of(total, one[0])) for one, pool in self.pools.items()}
        self._check_tokens(found, all_together(clients))
        for linears, one in found.items():
            self.pools[linears].add(one)
        self.clients = len(clients)

    def add_pooled(self, pooled: Pooled, clients: int) -> None:
        for linears, found in pooled.inputs[self.kind.name].items():
            self.pools[linears].add(found)
        self.clients += clients

    def results(self) -> Iterator[tuple[Linears, Statistic]]:
        """Yield each input's linears and pooled statistic."""
        for linears, pool in self.pools.items():
            yield linears, pool.result()


class StatisticAggregator(StatisticSums[BlockResult], BlockAggregator[dict[Linears, Statistic]]):
    """Adds up what clients know of each input and prunes the block on the sums."""

    def __init__(self, exchange: StatisticExchange, task: BlockTask) -> None:
        BlockAggregator.__init__(self, exchange, task)
        StatisticSums.__init__(self, task, exchange.kind)

    def close(self) -> BlockResult:
        """Prune the block on the pooled statistics."""
        pruner = make_pruner(self.exchange.config.pruner)
        return self.pruned_on(self.results(), pruner, self.clients, self.tokens())
