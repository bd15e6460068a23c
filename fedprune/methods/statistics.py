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
    Aggregator,
    Answer,
    BlockAggregator,
    BlockExchange,
    BlockResult,
    BlockTask,
    Contributor,
    Pooled,
)
from fedprune.methods.inputs import all_together, check_tokens
from fedprune.methods.public_model import PublicModel
from fedprune.methods.state import CountedSums, Keepable
from fedprune.methods.sums import StatisticPool
from fedprune.methods.word_sums import Layout, Words, part_of, prefixed
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
        """The format of the payloads, which the kind decides."""
        return f"fedprune.{self.kind.name}.v1"

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return this client's statistics of the block where a walk stands."""
        statistics = walk.collect(self.kind.name)
        own = {}
        if local_prefix:
            own = prune_on(walk, statistics, make_pruner(self.config.pruner), spec)
        return Answer(encode_statistic(self.kind, statistics), own)

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """Return the most bytes that a client's statistics of a block can take."""
        return most_bytes(expected(self.kind, model.inputs[block], model.shapes[block]))

    def aggregator(self, task: BlockTask) -> "StatisticAggregator":
        """Return empty sums for a block."""
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


class StatisticSums(CountedSums, Aggregator[dict[str, Statistic], R], Generic[R]):
    """Adds up what clients know of each input; what it comes to is for subclasses to say.

    Parameters
    ----------
    task : BlockTask
        The block.
    kind : StatisticKind
        What clients send.
    """

    def __init__(self, task: BlockTask, kind: StatisticKind[Any]) -> None:
        self.task, self.kind = task, kind
        self.sums_integers = kind.exact
        self._inputs, shapes = task.model.inputs[task.block], task.model.shapes[task.block]
        self._expected = expected(kind, self._inputs, shapes)
        self._pools = {
            linears[0]: StatisticPool(kind, shapes[linears[0]][1]) for linears in self._inputs
        }

    def check(self, payload: bytes, client: Contributor) -> dict[str, Statistic]:
        """Decode statistics, which must be those of the block's inputs."""
        arrays = decode_arrays(payload, self._expected)
        found: dict[str, Statistic] = {}
        for name, pool in self._pools.items():
            prefix = f"{name}."
            own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
            tokens = int(own.pop(_TOKENS)[0])
            if not 0 <= tokens <= _MOST_TOKENS:
                raise WireError(f"the input of '{name}' has from 0 to 2**63 - 1 tokens.")
            found[name] = pool.read(own, tokens)
        check_tokens({name: one.tokens for name, one in found.items()}, self.task, client)
        return found

    def add(self, answer: dict[str, Statistic], client: Contributor) -> None:
        """Add one client's checked statistics."""
        for name, found in answer.items():
            self._pools[name].add(found)
        self.clients += 1

    def layout(self, clients: int) -> Layout:
        """Return the words of the statistic of each input."""
        return prefixed({name: pool.layout() for name, pool in self._pools.items()})

    def words(self, answer: dict[str, Statistic], client: Contributor, clients: int) -> Words:
        """Return one client's checked statistics as words."""
        return prefixed(
            {name: pool.words(answer[name], clients) for name, pool in self._pools.items()}
        )

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Add the statistic of all clients, which must be of the tokens that they promised."""
        found = {name: pool.read_total(part_of(total, name)) for name, pool in self._pools.items()}
        tokens = {name: one.tokens for name, one in found.items()}
        check_tokens(tokens, self.task, all_together(clients))
        for name, one in found.items():
            self._pools[name].add(one)
        self.clients = len(clients)

    def add_pooled(self, pooled: Pooled, clients: int) -> None:
        """See `Aggregator.add_pooled`."""
        for linears, found in pooled.inputs[self.kind.name].items():
            self._pools[linears[0]].add(found)
        self.clients += clients

    def results(self) -> Iterator[tuple[tuple[str, ...], Statistic]]:
        """Yield each input's linears and pooled statistic."""
        for linears in self._inputs:
            yield linears, self._pools[linears[0]].result()

    def parts(self) -> Mapping[str, Keepable]:
        """Return the sums of each input, by the first linear that reads it."""
        return self._pools


class StatisticAggregator(StatisticSums[BlockResult], BlockAggregator[dict[str, Statistic]]):
    """Adds up what clients know of each input and prunes the block on the sums."""

    def __init__(self, exchange: StatisticExchange, task: BlockTask) -> None:
        BlockAggregator.__init__(self, exchange, task)
        StatisticSums.__init__(self, task, exchange.kind)

    def close(self) -> BlockResult:
        """Prune the block on the pooled statistics."""
        tokens = {name: found.tokens for linears, found in self.results() for name in linears}
        pruner = make_pruner(self.exchange.config.pruner)
        return self.pruned_on(self.results(), pruner, self.clients, tokens)
