"""FedPrLLM: clients vote with their masks, the most voted weights are pruned.

Guo et al., "FedPrLLM" (arXiv 2505.13547): every client prunes its own copy and sends masks only;
the server prunes, in each comparison group, the weights that most clients prune. Of equally voted
weights the smaller goes first, then the lower index; the published choices, the lower index or a
random one, are options. So is decoding: a mask tells its client's input norms up to a scale, and
the pooled norms prune better than votes.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from fedprune.config import RunConfig
from fedprune.methods.abstention import abstentions
from fedprune.methods.exchange import (
    Answer,
    BlockExchange,
    BlockTask,
    check_scaling,
)
from fedprune.methods.fedprllm.votes import VoteAggregator
from fedprune.methods.public_model import PublicModel
from fedprune.methods.registry import Method, Words
from fedprune.pruning.blocks import BlockWalk, prune_on
from fedprune.pruning.groups import BlockSpec, check_mask
from fedprune.pruning.registry import make_pruner
from fedprune.wire.changes import Change, mask_of
from fedprune.wire.masks import BitMask, encode_masks


class MaskExchange(BlockExchange):
    """Ask every client which weights it would prune."""

    payload = "masks"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.shares_inputs = config.strategy.decode

    def answer(self, walk: BlockWalk, spec: BlockSpec, local_prefix: bool) -> Answer:
        """Return this client's masks of the block where a walk stands."""
        pruner = make_pruner(self.config.pruner)
        statistics = walk.collect(pruner.needs)
        changes = prune_on(walk, statistics, pruner, spec)
        masks = {name: mask_of(change) for name, change in changes.items()}
        masks |= abstentions(statistics, {name: mask.shape for name, mask in masks.items()})
        return Answer(encode_masks(masks), changes)

    def check_result(self, changes: Mapping[str, Change], block: int, num_blocks: int) -> None:
        """Refuse masks that do not have the zeros asked for, or survivors scaled unasked."""
        spec = self.result_spec(block, num_blocks)
        for name, change in changes.items():
            check_mask(mask_of(change), spec.of(name), name)
            check_scaling(change, name, self.config.strategy.scaling)

    def most_bytes(self, model: PublicModel, block: int) -> int:
        """Return the most bytes that a client's masks of a block can take."""
        return model.mask_bytes(block)

    def aggregator(self, task: BlockTask) -> VoteAggregator:
        """Return empty votes for a block."""
        return VoteAggregator(self, task)

    def answer_of(
        self, changes: Mapping[str, Change], weight: Callable[[str], Tensor]
    ) -> dict[str, BitMask]:
        """Return a client's masks."""
        return {name: mask_of(change) for name, change in changes.items()}

    def result_spec(self, block: int, num_blocks: int) -> BlockSpec:
        """Votes compete within `strategy.group`; decoded norms prune as the clients did."""
        spec = super().result_spec(block, num_blocks)
        strategy = self.config.strategy
        group = spec.group if strategy.decode else strategy.group
        return replace(spec, group=group)


class FedPrLLM(Method):
    """Voting on masks, one-shot or block by block, with or without scaling."""

    name = "fedprllm"
    words = Words(
        label="FedPrLLM",
        does="clients send masks, the server counts votes",
        sends="which weights it would prune (masks, one bit a weight)",
        tells="A mask is as telling as the statistics it was made from: the norms of inputs can "
        "be computed back from it to about three digits.",
    )

    ways = {"votes": ()}

    def exchange(self, config: RunConfig) -> MaskExchange:
        """Return the exchange that is held about every block."""
        return MaskExchange(config)


METHOD = FedPrLLM()
