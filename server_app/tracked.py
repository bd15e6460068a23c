"""A tally that tells a tracker of each block it takes."""

from dataclasses import dataclass

from fedprune.results.build import LinearFigures
from fedprune.results.tracking import Tracking
from server_app.tally import Tally
from strategies.block import BlockResult


@dataclass
class TrackedTally(Tally):
    """Keeps what a tally keeps.

    Parameters
    ----------
    tracking : Tracking
        Is told of every block, in every round.
    """

    tracking: Tracking

    def add(self, number: int, result: BlockResult) -> None:
        """Save a block of a round and its figures, and tell of them."""
        super().add(number, result)
        figures = self.folder.read_figures(number, result.block)["linears"]
        step = (number - 1) * len(self.loaded.layout.blocks) + result.block + 1
        self.tracking.block(step, [LinearFigures(**one) for one in figures], self.files.ledger)
