"""Sums over clients of what enters a block's linears, checked against the model."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.methods.exchange import Aggregator, BlockTask, Contributor, Pooled
from fedprune.methods.state import CountedSums, Keepable
from fedprune.methods.sums import MedianPool, SumsPool
from fedprune.methods.word_sums import Layout, Words, part_of, prefixed
from fedprune.pruning.statistics import (
    ColumnSquares,
    ColumnStatistics,
    Statistic,
    shared_inputs,
)
from fedprune.wire.sums import ExactSums, InputSums, decode_sums, encode_sums

R = TypeVar("R")


def encode_statistics(statistics: Mapping[str, Statistic]) -> bytes:
    """Encode a client's exact column sums of a block.

    `statistics`: name of the linear -> what was recorded; linears that share an input share the
    object.
    """
    return encode_sums([_sums(names, found) for names, found in shared_inputs(statistics)])


def _sums(linears: tuple[str, ...], statistics: Statistic) -> InputSums:
    if not isinstance(statistics, ColumnStatistics) or statistics.exact is None:
        raise RuntimeError("sums are sent as they were recorded.")
    return InputSums(linears, statistics.exact, statistics.tokens)


def column_bytes(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the most bytes that exact sums of a block's inputs can take."""
    return sum(_HEAD_BYTES + _COLUMN_BYTES * columns for _, columns in shapes.values())


_HEAD_BYTES = 2048  # names, counts, checksum and forms of an input's arrays
_COLUMN_BYTES = 40


Linears = tuple[str, ...]
T = TypeVar("T")


class PooledInputs(CountedSums, Aggregator[dict[Linears, T], R], Generic[T, R]):
    """What clients know of each of a block's inputs, added up; what it comes to is for subclasses.

    `pools`: the linears that read an input -> what is known of it.
    """

    def __init__(self, task: BlockTask, pools: Mapping[Linears, Any]) -> None:
        self.task = task
        self.pools: dict[Linears, Any] = dict(pools)

    @property
    def inputs(self) -> Sequence[Linears]:
        """The block's inputs, each as the linears that read it."""
        return self.task.model.inputs[self.task.block]

    def add(self, answer: dict[Linears, T], client: Contributor) -> None:
        """Add what one client knows."""
        for linears, one in answer.items():
            self.pools[linears].add(one)
        self.clients += 1

    def layout(self, clients: int) -> Layout:
        """Return the words of what is pooled of each input."""
        shapes = self.task.model.shapes[self.task.block]
        return prefixed({one[0]: p.layout(shapes[one[0]][1]) for one, p in self.pools.items()})

    def words(self, answer: dict[Linears, T], client: Contributor, clients: int) -> Words:
        """Return what a client knows as it is pooled."""
        found = {one[0]: pool.words(answer[one], clients) for one, pool in self.pools.items()}
        return prefixed(found)

    def tokens(self) -> dict[str, int]:
        """Return linear -> tokens of all clients; of inputs whose sums are not yet taken."""
        return {name: pool.seen for linears, pool in self.pools.items() for name in linears}

    def parts(self) -> dict[str, Keepable]:
        """Return what is pooled of each input, by the first linear that reads it."""
        return {linears[0]: pool for linears, pool in self.pools.items()}


class ColumnAggregator(PooledInputs[InputSums, R], Generic[R]):
    """Exact sums of a block's inputs; what they come to is for subclasses to say.

    `pooling`: `strategy.pooling`; with 'worst', where clients' weights are found when a block is
    pruned, these are the sums by tokens.
    """

    sums_integers = True

    def __init__(self, task: BlockTask, pooling: str) -> None:
        mode = "tokens" if pooling == "worst" else pooling
        inputs = task.model.inputs[task.block]
        super().__init__(
            task, {one: MedianPool() if pooling == "median" else SumsPool(mode) for one in inputs}
        )

    def check(self, payload: bytes, client: Contributor) -> dict[Linears, InputSums]:
        """Decode sums, which must be those of the block's inputs."""
        found = decode_sums(payload, self.task.model.shapes[self.task.block])
        check_inputs([one.linears for one in found], self.inputs)
        check_tokens({one.linears[0]: one.tokens for one in found}, self.task, client)
        for one in found:
            total = float(one.sums.to_float64().sum())
            check_loudness(self.task, one.linears, total, one.tokens)
        return {one.linears: one for one in found}

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Take the sums of clients' words, which must be of the tokens that they promised."""
        found = {linears: SumsPool(pool.mode) for linears, pool in self.pools.items()}
        for linears, pool in found.items():
            pool.add_total(linears, part_of(total, linears[0]))
        together = all_together(clients)
        check_tokens({one[0]: pool.seen for one, pool in found.items()}, self.task, together)
        for linears, pool in found.items():
            if pool.mode == "tokens":
                check_loudness(self.task, linears, pool.total(), pool.seen)
        for linears, pool in found.items():
            own = self.pools[linears]
            if isinstance(own, MedianPool):
                own.add_cohort(pool)
            else:
                self.pools[linears] = pool
        self.clients += len(clients)

    def add_pooled(self, pooled: Pooled, clients: int) -> None:
        for linears, found in pooled.inputs[ColumnSquares.name].items():
            exact = found.exact or ExactSums(found.sums.numel())
            self.pools[linears].add(InputSums(linears, exact, found.tokens))
        self.clients += clients

    def statistics(self) -> dict[str, ColumnStatistics]:
        """Return linear -> pooled statistics; linears that share an input share the object."""
        found: dict[str, ColumnStatistics] = {}
        for linears, pool in self.pools.items():
            found |= dict.fromkeys(linears, pool.statistic())
        return found


def all_together(clients: Sequence[Contributor]) -> Contributor:
    """Return several clients as one, as far as their sums are checked by what they promised."""
    known = all(client.tokens for client in clients)
    names = ", ".join(client.name for client in clients)
    weight = sum(client.weight for client in clients)
    return Contributor(names, weight, sum(client.tokens for client in clients) if known else 0)


def check_inputs(sent: Sequence[tuple[str, ...]], expected: Sequence[tuple[str, ...]]) -> None:
    """Raise ``WireError`` unless the inputs that a client sent are those of the model."""
    if sorted(sent) != sorted(expected):
        shown = "; ".join(" ".join(linears) for linears in expected)
        raise WireError(f"the block's linears share inputs as {shown}; the client's do not.")


def check_loudness(task: BlockTask, linears: Sequence[str], squares: float, tokens: int) -> None:
    """Raise ``WireError`` if inputs are larger than the public model can make them.

    `task`: the block, whose model knows how large they can be. `squares`: the sum over columns and
    tokens of the squared input.
    """
    if not task.model.loudness:
        return
    most = task.model.loudness[task.block].get(linears[0], float("inf"))
    mean = squares / (max(1, tokens) * task.model.shapes[task.block][linears[0]][1])
    if not mean <= most:  # so that NaN is refused, too
        raise WireError(
            f"the input of {' '.join(linears)} has a mean square of {mean:.3g}; what any text "
            f"makes of the public model stays below {most:.3g}."
        )


def check_tokens(found: Mapping[str, int], task: BlockTask, client: Contributor) -> None:
    """Raise ``WireError`` unless the widest input saw all tokens that a client promised.

    `found`: tokens of each input, by one of its linears. An expert's may have seen fewer, or none;
    no input can have seen more. `client`: what it promised; 0 if nobody knows.
    """
    if not client.tokens or not found:
        return
    most, expected = max(found.values()), client.tokens
    every = task.model.routed(task.block).issuperset(found)
    if most > expected or (most < expected and not every):
        raise WireError(f"its sums are of {most} tokens, in the handshake it promised {expected}.")
