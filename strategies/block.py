"""What a strategy hands over for each aggregated block."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.wire.bitmask import BitMask
from fedprune.wire.update import LinearUpdate


@dataclass(frozen=True)
class BlockResult:
    """One aggregated block.

    Attributes
    ----------
    block : int
        Its index.
    updates : Mapping[str, LinearUpdate]
        Name of the linear -> global mask and, with `strategy.scaling`, keep counts.
    histograms : Mapping[str, NDArray]
        Name of the linear -> weights by prune votes, from none to all
        (:meth:`fedprune.aggregation.votes.VoteCounter.histogram`).
    voters : int
        Clients whose masks were counted.
    effective_voters : float
        How many clients of equal weight they stand for; ``voters`` where all weigh the same.
    """

    block: int
    updates: Mapping[str, LinearUpdate]
    histograms: Mapping[str, NDArray[np.int64]]
    voters: int
    effective_voters: float

    @property
    def masks(self) -> dict[str, BitMask]:
        """Name of the linear -> global mask."""
        return {name: update.mask for name, update in self.updates.items()}
