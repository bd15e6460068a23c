"""FedSpaLLM: clients send the weights that survive, the server averages what was kept.

Bai et al., "FedSpaLLM" (arXiv 2410.14852): the mean over the clients that kept a weight (Eq. 5),
then the most pruned weights go until the global sparsity is reached (Eqs. 6 and 7); clients prune
as many blocks as their resources allow. The paper leaves open how blocks are drawn; here every
block is sure to be pruned by `strategy.coverage` clients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedprune.config import RunConfig
from fedprune.errors import ConfigError
from fedprune.methods.abstention import abstains, abstentions
from fedprune.methods.exchange import Answer, BlockExchange, BlockTask, check_scaling
from fedprune.methods.fedspallm.average import SurvivorAggregator
from fedprune.methods.fedspallm.sampling import sample_blocks
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import Assignment, Method, Participant, Words
from fedprune.pruning.blocks import BlockWalk, prune_on
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.registry import make_pruner
from fedprune.wire.changes import (
    Change,
    SparseWeight,
    encode_update,
    keeps_survivors,
    mask_of,
)
from fedprune.wire.masks import BitMask


class SurvivorExchange(BlockExchange):
    """Ask every client for the weights that survive its own pruning."""

    payload = "weights"

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        pruner = make_pruner(self.config.pruner)
        statistics = walk.collect(pruner.needs)
        changes = prune_on(walk, statistics, pruner, spec)
        weights = walk.weights()
        sparse: dict[str, Change] = {
            name: SparseWeight.from_dense(weights[name], change)
            if isinstance(change, BitMask) and not abstains(change)
            else change
            for name, change in changes.items()
        }
        sparse |= abstentions(statistics, {name: one.shape for name, one in sparse.items()})
        return Answer(encode_update(sparse), changes)

    @property
    def keeps_local_model(self) -> bool:
        """Not where a client prunes some of the blocks, or starts from the others' averages."""
        strategy = self.config.strategy
        return bool(strategy.rounds == 1 and strategy.layer_fraction == 1)

    def check_result(self, changes: Mapping[str, Change], block: int, num_blocks: int) -> None:
        """Refuse other zeros than those asked for, where they are the same in every round."""
        strategy = self.config.strategy
        # After several rounds a block may be as an earlier, less sparse one left it.
        if strategy.expansion and strategy.rounds == 1:
            super().check_result(changes, block, num_blocks)
        for name, change in changes.items():
            check_scaling(change, name, expected=False)

    def most_bytes(self, model: PublicModel, block: int) -> int:
        return model.weight_bytes(block)

    def aggregator(self, task: BlockTask) -> SurvivorAggregator:
        return SurvivorAggregator(self, task)

    def answer_of(
        self, changes: Mapping[str, Change], weight: Callable[[str], Tensor]
    ) -> dict[str, SparseWeight]:
        """Return a client's survivors; a mask alone says that they are the public ones."""
        found = {}
        for name, change in changes.items():
            if not isinstance(change, SparseWeight):
                if not keeps_survivors(change):
                    raise ConfigError(
                        f"Means are taken of what clients made, got scaled survivors of '{name}'."
                    )
                change = SparseWeight.from_dense(weight(name), mask_of(change))
            found[name] = change
        return found

    def result_spec(self, block: int, num_blocks: int) -> BlockSpec:
        """Return the global sparsity of the whole matrix (Eq. 6)."""
        spec = super().result_spec(block, num_blocks)
        up = self.config.strategy.rounding == "ceil"
        return replace(spec, group="layer", rounding="ceil" if up else "floor")


class FedSpaLLM(Method):
    """l0-norm aggregation, mask expansion and layer sampling."""

    name = "fedspallm"
    words = Words(
        label="FedSpaLLM",
        does="clients send surviving weights, the server averages them",
        sends="which weights it would keep (masks), and the values of those",
        tells="A mask is as telling as the statistics it was made from: the norms of inputs can "
        "be computed back from it to about three digits. Values that pruning changed "
        "tell more of the inputs.",
    )

    ways = {
        "l0": ("strategy.average=l0", "strategy.rounding=floor"),
        "fedavg": ("strategy.average=fedavg", "strategy.rounding=floor"),
    }

    def exchange(self, config: RunConfig) -> SurvivorExchange:
        return SurvivorExchange(config)

    def assign(
        self, config: RunConfig, model: PublicModel, clients: Sequence[Participant], number: int
    ) -> Assignment:
        """Draw the blocks of every client (layer sampling)."""
        return sample_blocks(clients, config, model, number)


METHOD = FedSpaLLM()
