"""Sums over clients of what enters a block's linears, checked against the model."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.methods.exchange import Aggregator, BlockTask, Contributor, Pooled
from fedprune.methods.median import MedianPool
from fedprune.methods.state import CountedSums, Keepable
from fedprune.methods.sums import SumsPool
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


class ColumnAggregator(CountedSums, Aggregator[list[InputSums], R], Generic[R]):
    """Exact sums of a block's inputs; what they come to is for subclasses to say.

    `pooling`: `strategy.pooling`; with 'worst', where clients' weights are found when a block is
    pruned, these are the sums by tokens.
    """

    sums_integers = True

    def __init__(self, task: BlockTask, pooling: str) -> None:
        self.task = task
        self._inputs = task.model.inputs[task.block]
        mode = "tokens" if pooling == "worst" else pooling
        self._pools = {
            linears: MedianPool() if pooling == "median" else SumsPool(mode)
            for linears in self._inputs
        }

    def check(self, payload: bytes, client: Contributor) -> list[InputSums]:
        """Decode sums, which must be those of the block's inputs."""
        found = decode_sums(payload, self.task.model.shapes[self.task.block])
        check_inputs([one.linears for one in found], self._inputs)
        check_tokens({one.linears[0]: one.tokens for one in found}, self.task, client)
        for one in found:
            total = float(one.sums.to_float64().sum())
            check_loudness(self.task, one.linears, total, one.tokens)
        return found

    def add(self, answer: list[InputSums], client: Contributor) -> None:
        """Add one client's checked sums."""
        for group in answer:
            self._pools[group.linears].add(group)
        self.clients += 1

    def layout(self, clients: int) -> Layout:
        """Return the words of the pooled sums of each input."""
        model, block = self.task.model, self.task.block
        return prefixed(
            {
                linears[0]: pool.layout(model.shapes[block][linears[0]][1])
                for linears, pool in self._pools.items()
            }
        )

    def words(self, answer: list[InputSums], client: Contributor, clients: int) -> Words:
        """Return a client's checked sums as they are pooled."""
        found = {one.linears: one for one in answer}
        return prefixed(
            {
                linears[0]: pool.words(found[linears], clients)
                for linears, pool in self._pools.items()
            }
        )

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Take the sums of clients' words, which must be of the tokens that they promised."""
        found = {linears: SumsPool(pool.mode) for linears, pool in self._pools.items()}
        for linears, pool in found.items():
            pool.add_total(linears, part_of(total, linears[0]))
        together = all_together(clients)
        check_tokens({one[0]: pool.seen for one, pool in found.items()}, self.task, together)
        for linears, pool in found.items():
            if pool.mode == "tokens":
                check_loudness(self.task, linears, pool.total(), pool.seen)
        for linears, pool in found.items():
            own = self._pools[linears]
            if isinstance(own, MedianPool):
                own.add_cohort(pool)
            else:
                self._pools[linears] = pool
        self.clients += len(clients)

    def add_pooled(self, pooled: Pooled, clients: int) -> None:
        """See `Aggregator.add_pooled`."""
        for linears, found in pooled.inputs[ColumnSquares.name].items():
            exact = found.exact or ExactSums(found.sums.numel())
            self._pools[linears].add(InputSums(linears, exact, found.tokens))
        self.clients += clients

    def statistics(self) -> dict[str, ColumnStatistics]:
        """Return linear -> pooled statistics; linears that share an input share the object."""
        found: dict[str, ColumnStatistics] = {}
        for linears, pool in self._pools.items():
            found |= dict.fromkeys(linears, pool.statistic())
        return found

    def tokens(self) -> dict[str, int]:
        """Return linear -> tokens of all clients."""
        return {name: pool.seen for linears, pool in self._pools.items() for name in linears}

    def parts(self) -> dict[str, Keepable]:
        """Return the sums of each input, by the first linear that reads it."""
        return {linears[0]: pool for linears, pool in self._pools.items()}


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
