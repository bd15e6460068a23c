"""A pruner and a strategy of one's own, in a package that is installed beside fedprune."""

from collections.abc import Iterator

from torch import Tensor

from fedprune.pruning.groups import MaskSpec, block_specs, check_mask
from fedprune.pruning.pruner import input_norms
from fedprune.pruning.selection import prune_products
from fedprune.pruning.statistics import Statistic
from fedprune.records import PruneReply
from fedprune.seeds import derive_seed
from fedprune.wire.masks import BitMask, decode_masks
from strategies.cohort import Client
from strategies.course import FederatedPruning
from strategies.state import BlockResult


class GentlePruner:
    """Wanda with the root of the input's norm: the text counts for less, the weight for more."""

    name = "gentle"
    needs = "columns"  # sums of squared inputs
    updates = False  # survivors keep their values

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> BitMask:
        """Return the mask of one linear."""
        return prune_products(weight, input_norms(self.name, weight, stats).sqrt(), spec)


class Lottery(FederatedPruning):
    """A baseline for votes: in every block the mask of one client, drawn by the seed."""

    def open_chunk(self, blocks: range) -> None:
        """Forget the chunk before."""
        self._specs = block_specs(self.config, blocks, len(self.plan.shapes))
        self._drawn: dict[int, tuple[int, dict[str, BitMask]]] = {}
        self._voters = 0

    def fold(self, reply: PruneReply, client: Client) -> None:
        """Check a client's masks, and keep those of blocks where nobody drew a lower number."""
        found = {b: decode_masks(data, self.plan.shapes[b]) for b, data in reply.blocks.items()}
        for block, masks in found.items():
            for name, mask in masks.items():
                check_mask(mask, self._specs[block], name)
        self._voters += 1
        for block, masks in found.items():
            draw = derive_seed(self.config.seed, "lottery", block, client.report.partition_id)
            if block not in self._drawn or draw < self._drawn[block][0]:
                self._drawn[block] = (draw, masks)

    def close_chunk(self) -> Iterator[BlockResult]:
        """Hand over what was drawn."""
        for block in sorted(self._drawn):
            yield BlockResult(block, self._drawn[block][1], self._voters, float(self._voters))
