"""Takes each aggregated block: masks to disk, a few figures a linear into memory."""

from dataclasses import dataclass, field

from fedprune.aggregation.agreement import pairwise_agreement, unanimous_share
from fedprune.models.loading import LoadedModel
from fedprune.reporting.results import LinearFigures
from server_app.folder import RunFolder
from strategies.block import BlockResult


@dataclass
class Tally:
    """Collects the figures of aggregated blocks.

    Parameters
    ----------
    folder : RunFolder
        Where the masks go.
    loaded : LoadedModel
        Names the linears.
    """

    folder: RunFolder
    loaded: LoadedModel
    _figures: list[LinearFigures] = field(default_factory=list)

    def add(self, result: BlockResult) -> None:
        """Save a block and note its figures."""
        prefix = self.loaded.layout.prefix
        self.folder.save_block(prefix, result.block, result.updates)
        for name, mask in result.masks.items():
            votes = result.histograms[name]
            self._figures.append(
                LinearFigures(
                    name=f"{prefix}.{result.block}.{name}",
                    weights=mask.numel,
                    zeros=mask.numel - mask.survivors,
                    voters=result.voters,
                    votes=[int(count) for count in votes],
                    agreement=pairwise_agreement(votes, result.effective_voters),
                    unanimous=unanimous_share(votes),
                )
            )

    @property
    def blocks(self) -> int:
        """Number of blocks in the model."""
        return len(self.loaded.layout.blocks)

    def linears(self) -> list[LinearFigures]:
        """Return the figures of all linears, in the model's order."""
        return self._figures
