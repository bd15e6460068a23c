"""Takes each aggregated block: masks and values to disk, a few figures a linear into memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedprune.aggregation.agreement import pairwise_agreement, tied_weights, unanimous_share
from fedprune.aggregation.sampled_agreement import (
    BlockSample,
    agreement_matrix,
    agreement_with_result,
    extremes,
)
from fedprune.models.loaded import LoadedModel
from fedprune.models.masking import Changes, Recalled
from fedprune.reporting.results import ClientAgreement, LinearFigures
from fedprune.wire.change import Change
from server_app.folder import RunFolder
from strategies.block import BlockResult

_MATRIX_CLIENTS = 64  # rows of the matrix of agreement between clients


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
    _samples: dict[int, BlockSample] = field(default_factory=dict)

    def add(self, result: BlockResult) -> None:
        """Save a block and note its figures; one that nobody reported stays as it was."""
        if result.changes:
            self.folder.save_block(self.loaded.layout.prefix, result.block, result.changes)
        if result.sample is not None:
            self._samples[result.block] = result.sample
        self._figures[result.block] = [
            self._linear(result, name, shape)
            for name, shape in self.loaded.layout.shapes()[result.block].items()
        ]

    def changes(self) -> Changes:
        """Return what becomes of the aggregated blocks, read from disk when it is asked for."""
        return Recalled(range(len(self.loaded.layout.blocks)), self.recall)

    def recall(self, block: int) -> Mapping[str, Change]:
        """Return what was saved of a block; empty if nothing was."""
        return self.folder.read_block(block)

    def linears(self) -> list[LinearFigures]:
        """Return the figures of all linears, in the model's order."""
        return [figures for block in sorted(self._figures) for figures in self._figures[block]]

    def agreement(self, clients: Sequence[str]) -> ClientAgreement | None:
        """Return how far each of these clients agrees with the result and with the others.

        None where clients send no masks.
        """
        samples = [self._samples[block] for block in sorted(self._samples)]
        if not samples:
            return None
        found = agreement_with_result(samples)
        result = {name: found[name] for name in clients if name in found}
        shown = extremes(result, _MATRIX_CLIENTS)
        weights = sum(sample.weights for sample in samples)
        return ClientAgreement(weights, result, shown, agreement_matrix(samples, shown))

    def _linear(self, result: BlockResult, name: str, shape: tuple[int, int]) -> LinearFigures:
        mask, votes = result.masks.get(name), result.histograms.get(name)
        weights = shape[0] * shape[1]
        zeros = weights - mask.survivors if mask is not None else 0
        return LinearFigures(
            name=f"{self.loaded.layout.prefix}.{result.block}.{name}",
            weights=weights,
            zeros=zeros,
            voters=result.voters,
            votes=[int(count) for count in votes] if votes is not None else [],
            agreement=None if votes is None else pairwise_agreement(votes, result.effective_voters),
            unanimous=None if votes is None else unanimous_share(votes),
            tied=0 if votes is None else tied_weights(votes, zeros),
        )
