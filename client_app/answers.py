"""What a node says about a block, by strategy, and what it goes on with itself."""

from collections.abc import Mapping
from dataclasses import dataclass

from client_app.moments import input_moments
from client_app.update import Place
from fedprune.config import RunConfig
from fedprune.pruning.blocks import BlockWalk, prune_block, prune_on
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.pruner import Pruner
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.statistics import ColumnStatistics, Statistics, shared_inputs
from fedprune.pruning.wanda import WithWandaFallback
from fedprune.records import FORMS, MASKS, SUMS, WEIGHTS
from fedprune.wire.changes import Change, SparseWeight, encode_update, mask_of
from fedprune.wire.masks import BitMask, encode_block
from fedprune.wire.moments import encode_moments
from fedprune.wire.sums import InputSums, encode_sums


@dataclass(frozen=True)
class Answer:
    """A block's bytes, and what became of it on this node."""

    payload: bytes
    changes: Mapping[str, Change]


@dataclass(frozen=True)
class Respondent:
    """Makes the answers of one order.

    Parameters
    ----------
    config : RunConfig
        The run's configuration.
    survey : bool
        Whether only sums are asked for.
    alone : bool
        Whether the walk goes on with this node's own pruned blocks.
    """

    config: RunConfig
    survey: bool
    alone: bool

    @property
    def form(self) -> str:
        """The format of the payloads."""
        return SUMS if self.survey else FORMS[self.config.strategy.name]

    def answer(self, walk: BlockWalk, spec: MaskSpec | None) -> Answer:
        """Return the answer for the block where a walk stands; the walk stays there.

        ``spec`` is what a pruned block must look like; None where the block is only surveyed.
        """
        if spec is None:
            return Answer(_encoded_sums(walk.collect("columns")), {})
        pruner = make_pruner(self.config.pruner)
        if self.form == MASKS:
            return self._masks(prune_block(walk, pruner, spec))
        if self.form == WEIGHTS:
            return self._weights(walk, prune_block(walk, pruner, spec))
        if self.form == SUMS:
            return self._sums(walk, pruner, spec)
        return self._moments(walk, pruner, spec)

    def _masks(self, changes: Mapping[str, Change]) -> Answer:
        masks = {name: mask_of(change) for name, change in changes.items()}
        return Answer(encode_block(masks, self.config.pruner.pattern), changes)

    def _weights(self, walk: BlockWalk, changes: Mapping[str, Change]) -> Answer:
        weights = walk.weights()
        sparse: dict[str, Change] = {
            name: SparseWeight.from_dense(weights[name], change)
            if isinstance(change, BitMask)
            else change
            for name, change in changes.items()
        }
        return Answer(encode_update(sparse, self.config.pruner.pattern), changes)

    def _sums(self, walk: BlockWalk, pruner: Pruner, spec: MaskSpec) -> Answer:
        statistics = walk.collect("columns")
        return Answer(_encoded_sums(statistics), self._own(walk, statistics, pruner, spec))

    def _moments(self, walk: BlockWalk, pruner: Pruner, spec: MaskSpec) -> Answer:
        statistics = walk.collect("moments", self.config.strategy.max_width)
        groups = input_moments(self.config, walk.position, statistics, Place.of(walk).shapes)
        return Answer(encode_moments(groups), self._own(walk, statistics, pruner, spec))

    def _own(
        self,
        walk: BlockWalk,
        statistics: Mapping[str, Statistics],
        pruner: Pruner,
        spec: MaskSpec,
    ) -> Mapping[str, Change]:
        return prune_on(walk, statistics, WithWandaFallback(pruner), spec) if self.alone else {}


def _encoded_sums(statistics: Mapping[str, Statistics]) -> bytes:
    return encode_sums([_exact(names, found) for names, found in shared_inputs(statistics)])


def _exact(linears: tuple[str, ...], statistics: Statistics) -> InputSums:
    if not isinstance(statistics, ColumnStatistics) or statistics.exact is None:
        raise RuntimeError("sums are sent as they were recorded.")
    return InputSums(linears, statistics.exact, statistics.tokens)
