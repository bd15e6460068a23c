"""The running statistics of one block: checked sums or moments in, pooled statistics out."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.methods.state import Arrays, Keepable, gathered, numbers, scattered
from fedprune.methods.sums import Pooling, SumsPool
from fedprune.pruning.statistics import ColumnStatistics
from fedprune.wire.sums import InputSums

Inputs = Sequence[tuple[str, ...]]
"""The linears that share an input, one tuple for each distinct input of a block."""


G = TypeVar("G")
"""What a client sends of one input."""


class Pool(Keepable, Protocol[G]):
    """The running statistics of one block."""

    clients: int

    def check(self, groups: list[G]) -> None:
        """Raise ``WireError`` if these are not a block's statistics as asked for."""
        ...

    def add(self, groups: list[G]) -> None:
        """Add one client's checked statistics."""
        ...


def add_checked(pools: Mapping[int, Pool[G]], found: Mapping[int, list[G]]) -> None:
    """Add one client's statistics of several blocks: all of them, or none if one is wrong.

    Raises
    ------
    WireError
        If they are not what a pool asks for; then nothing has been added.
    """
    for block, groups in found.items():
        pools[block].check(groups)
    for block, groups in found.items():
        pools[block].add(groups)


class ColumnPools:
    """Pools of the exact sums of a block's inputs.

    Parameters
    ----------
    inputs : Sequence of tuples
        The block's distinct inputs, as the model has them.
    mode : {"tokens", "clients", "scaled"}
        `strategy.pooling`.
    """

    def __init__(self, inputs: Inputs, mode: str) -> None:
        self._pools = {linears: SumsPool(pooling_of(mode)) for linears in inputs}
        self.clients = 0

    def check(self, groups: Sequence[InputSums]) -> None:
        """Refuse sums that are not those of the block's inputs.

        Raises
        ------
        WireError
            Naming what differs.
        """
        check_inputs([group.linears for group in groups], list(self._pools))

    def add(self, groups: Sequence[InputSums]) -> None:
        """Add one client's checked sums."""
        for group in groups:
            self._pools[group.linears].add(group)
        self.clients += 1

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        return {"counts": numbers(self.clients), **gathered(self._parts())}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another block's."""
        (self.clients,) = (int(n) for n in arrays["counts"])
        scattered(arrays, self._parts())

    def _parts(self) -> dict[str, Keepable]:
        return {linears[0]: pool for linears, pool in self._pools.items()}

    def statistics(self) -> dict[str, ColumnStatistics]:
        """Return linear -> pooled statistics; linears that share an input share the object."""
        found: dict[str, ColumnStatistics] = {}
        for linears, pool in self._pools.items():
            sums, tokens = pool.result()
            shared = ColumnStatistics(torch.from_numpy(sums), tokens)
            found |= dict.fromkeys(linears, shared)
        return found


def check_inputs(sent: Sequence[tuple[str, ...]], expected: Sequence[tuple[str, ...]]) -> None:
    """Raise ``WireError`` unless the inputs that a client sent are those of the model."""
    if sorted(sent) != sorted(expected):
        shown = "; ".join(" ".join(linears) for linears in expected)
        raise WireError(f"the block's linears share inputs as {shown}; the client's do not.")


def pooling_of(mode: str) -> Pooling:
    """Return `strategy.pooling`, which was checked before, as its type."""
    known: Mapping[str, Pooling] = {"tokens": "tokens", "clients": "clients", "scaled": "scaled"}
    return known[mode]
