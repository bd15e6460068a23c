"""The frame of strategies whose clients send statistics: checked, pooled, and pruned on."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from fedprune.methods.state import Arrays, gathered, scattered
from fedprune.records import PruneReply
from strategies.cohort import Client
from strategies.course import FederatedPruning
from strategies.pools import G, Pool, add_checked
from strategies.state import BlockResult

P = TypeVar("P", bound=Pool)  # type: ignore[type-arg]


class PooledPruning(FederatedPruning, Generic[G, P]):
    """Adds up what clients know of each input and prunes block by block on the sums."""

    _pools: dict[int, P]

    @abstractmethod
    def new_pool(self, block: int) -> P:
        """Return an empty pool for a block."""

    @abstractmethod
    def decoded(self, data: bytes, block: int) -> list[G]:
        """Return a client's statistics of a block; WireError if they are malformed."""

    @abstractmethod
    def prune(self, block: int, pool: P) -> BlockResult:
        """Prune a block on its pooled statistics."""

    def open_chunk(self, blocks: range) -> None:
        """Start the sums of a chunk's inputs."""
        self._pools = {block: self.new_pool(block) for block in blocks}

    def fold(self, reply: PruneReply, client: Client) -> None:
        """Add one client's statistics: all of them, or none if one is wrong."""
        found = {block: self.decoded(data, block) for block, data in reply.blocks.items()}
        add_checked(self._pools, found)

    def votes(self) -> Arrays:
        """Return the sums of the open chunk's inputs."""
        return gathered({str(block): pool for block, pool in self._pools.items()})

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on with the sums of an open chunk."""
        scattered(arrays, {str(block): pool for block, pool in self._pools.items()})

    def close_chunk(self) -> Iterator[BlockResult]:
        """Prune the chunk's blocks one by one and forget their statistics."""
        for block in list(self._pools):
            yield self.prune(block, self._pools.pop(block))
