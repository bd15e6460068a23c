"""Takes each aggregated block: masks and values to disk, a few figures a linear into memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedprune.aggregation.agreement import pairwise_agreement, unanimous_share
from fedprune.models.loading import LoadedModel
from fedprune.reporting.results import LinearFigures
from fedprune.wire.change import Change
from server_app.folder import RunFolder
from strategies.block import BlockResult


@dataclass
class Tally:
    """Collects the figures of aggregated blocks; a later round's replace an earlier one's.

    Parameters
    ----------
    folder : RunFolder
        Where masks and values go.
    loaded : LoadedModel
        Names the linears.
    """

    folder: RunFolder
    loaded: LoadedModel
    _figures: dict[int, list[LinearFigures]] = field(default_factory=dict)

    def add(self, result: BlockResult) -> None:
        """Save a block and note its figures; one that nobody reported stays as it was."""
        if result.changes:
            self.folder.save_block(self.loaded.layout.prefix, result.block, result.changes)
        self._figures[result.block] = [
            self._linear(result, name, shape)
            for name, shape in self.loaded.layout.shapes()[result.block].items()
        ]

    def recall(self, block: int) -> Mapping[str, Change]:
        """Return what was saved of a block; empty if nothing was."""
        return self.folder.read_block(block)

    @property
    def blocks(self) -> int:
        """Number of blocks in the model."""
        return len(self.loaded.layout.blocks)

    def linears(self) -> list[LinearFigures]:
        """Return the figures of all linears, in the model's order."""
        return [figures for block in sorted(self._figures) for figures in self._figures[block]]

    def _linear(self, result: BlockResult, name: str, shape: tuple[int, int]) -> LinearFigures:
        mask, votes = result.masks.get(name), result.histograms.get(name)
        weights = shape[0] * shape[1]
        return LinearFigures(
            name=f"{self.loaded.layout.prefix}.{result.block}.{name}",
            weights=weights,
            zeros=weights - mask.survivors if mask is not None else 0,
            voters=result.voters,
            votes=[int(count) for count in votes] if votes is not None else [],
            agreement=None if votes is None else pairwise_agreement(votes, result.effective_voters),
            unanimous=None if votes is None else unanimous_share(votes),
        )
