"""FedStats: clients send sums of squared inputs, the server prunes as if it held all texts.

What Wanda and RIA know of a client's texts is one number a column, and those numbers add up over
clients. They are added without rounding, so with the iterative schedule the masks are those of
pruning all texts in one place, bit for bit, however the texts are spread and whoever answers first.
"""

from fedprune.pruning.groups import result_spec
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import ColumnStatistics
from fedprune.wire.changes import Change, encode_update
from fedprune.wire.sums import InputSums, PooledSums, decode_sums, encode_pooled
from strategies.pooled import PooledPruning
from strategies.pools import ColumnPools
from strategies.state import BlockResult


class FedStats(PooledPruning[InputSums, ColumnPools]):
    """Pruning on summed column statistics, iterative (exact) or one-shot."""

    _pooled: dict[str, ColumnStatistics]

    def block_bytes(self, block: int) -> int:
        """Return the most bytes that a client's sums of a block can take."""
        return self.plan.column_bytes(block)

    def new_pool(self, block: int) -> ColumnPools:
        """Return an empty pool for a block's sums."""
        return ColumnPools(self.plan.inputs[block], self.config.strategy.pooling)

    def decoded(self, data: bytes, block: int) -> list[InputSums]:
        """Return a client's sums of a block."""
        return decode_sums(data, self.plan.shapes[block])

    def prune(self, block: int, pool: ColumnPools) -> BlockResult:
        """Prune a block on the pooled sums."""
        self._pooled = pool.statistics()
        pruner = make_pruner(self.config.pruner)
        spec = result_spec(self.config, block, len(self.plan.shapes))
        changes: dict[str, Change] = {
            name: pruner.prune(self.plan.weight(block, name), self._pooled[name], spec)
            for name in self.plan.shapes[block]
        }
        return BlockResult(block, changes, pool.clients, pool.clients)

    def encode(self, done: BlockResult) -> bytes:
        """Return the pooled sums or the masks, whichever are fewer bytes (`strategy.downlink`)."""
        masks = encode_update(done.changes)
        if self.config.strategy.downlink == "masks":
            return masks
        groups = []
        for linears in self.plan.inputs[done.block]:
            found = self._pooled[linears[0]]
            checksums = tuple(done.masks[name].checksum for name in linears)
            groups.append(PooledSums(linears, found.sum_squares.numpy(), found.tokens, checksums))
        sums = encode_pooled(groups)
        return min(sums, masks, key=len) if self.config.strategy.downlink == "auto" else sums
