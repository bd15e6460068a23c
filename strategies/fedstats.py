"""FedStats: clients send sums of squared inputs, the server prunes as if it held all texts.

What Wanda and RIA know of a client's texts is one number a column, and those numbers add up over
clients. They are added without rounding, so with the iterative schedule the masks are those of
pruning all texts in one place, bit for bit, however the texts are spread and whoever answers first.
"""

import zlib
from collections.abc import Iterator

from fedprune.pruning.registry import make_pruner
from fedprune.pruning.spec import result_spec
from fedprune.pruning.statistics import ColumnStatistics
from fedprune.records import SUMS, PruneReply
from fedprune.wire.change import Change
from fedprune.wire.pooled import PooledSums, encode_pooled
from fedprune.wire.sums import decode_sums
from fedprune.wire.update import encode_update
from strategies.base import FederatedPruning
from strategies.block import BlockResult
from strategies.handshake import Client
from strategies.pools import ColumnPools


class FedStats(FederatedPruning):
    """Pruning on summed column statistics, iterative (exact) or one-shot."""

    form = SUMS
    _pools: dict[int, ColumnPools]
    _pooled: dict[str, ColumnStatistics]

    def block_bytes(self, block: int) -> int:
        """Return the most bytes that a client's sums of a block can take."""
        return self.plan.column_bytes(block)

    def open_chunk(self, blocks: range) -> None:
        """Start the sums of a chunk's inputs."""
        pooling = self.config.strategy.pooling
        self._pools = {block: ColumnPools(self.plan.inputs[block], pooling) for block in blocks}

    def fold(self, reply: PruneReply, client: Client) -> None:
        """Add one client's sums: all of them, or none if one is wrong."""
        decoded = {
            block: decode_sums(data, self.plan.shapes[block])
            for block, data in reply.blocks.items()
        }
        for block, groups in decoded.items():
            self._pools[block].check(groups)
        for block, groups in decoded.items():
            self._pools[block].add(groups)

    def close_chunk(self) -> Iterator[BlockResult]:
        """Prune the chunk's blocks one by one on the pooled statistics."""
        pruner, total = make_pruner(self.config.pruner), len(self.plan.shapes)
        for block in list(self._pools):
            pool = self._pools.pop(block)
            self._pooled = pool.statistics()
            spec = result_spec(self.config, block, total)
            changes: dict[str, Change] = {
                name: pruner.prune(self.plan.weight(block, name), self._pooled[name], spec)
                for name in self.plan.shapes[block]
            }
            yield BlockResult(block, changes, pool.clients, pool.clients)

    def encode(self, done: BlockResult) -> bytes:
        """Return the pooled sums or the masks, whichever are fewer bytes (`strategy.downlink`)."""
        masks = encode_update(done.changes, self.config.pruner.pattern)
        if self.config.strategy.downlink == "masks":
            return masks
        groups = []
        for linears in self.plan.inputs[done.block]:
            found = self._pooled[linears[0]]
            checksums = tuple(zlib.crc32(done.masks[name].bits.tobytes()) for name in linears)
            groups.append(PooledSums(linears, found.sum_squares.numpy(), found.tokens, checksums))
        sums = encode_pooled(groups)
        return min(sums, masks, key=len) if self.config.strategy.downlink == "auto" else sums
