"""What a strategy hands over for each aggregated block."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedprune.methods.agreement import BlockSample
from fedprune.wire.changes import Change, mask_of
from fedprune.wire.masks import BitMask


@dataclass(frozen=True)
class BlockResult:
    """One aggregated block.

    Attributes
    ----------
    block : int
        Its index.
    changes : Mapping[str, BitMask, LinearUpdate or SparseWeight]
        Name of the linear -> what becomes of it; empty where nobody reported the block.
    voters : int
        Clients whose replies were counted.
    effective_voters : float
        How many clients of equal weight they stand for; ``voters`` where all weigh the same.
    histograms : Mapping[str, NDArray]
        Name of the linear -> weights by prune votes, from none to all
        (:meth:`fedprune.methods.votes.VoteCounter.histogram`); empty without votes.
    sample : BlockSample or None
        A few bits of every client's mask and of the result; None without votes.
    """

    block: int
    changes: Mapping[str, Change]
    voters: int
    effective_voters: float
    histograms: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    sample: BlockSample | None = None

    @property
    def masks(self) -> dict[str, BitMask]:
        """Name of the linear -> global mask."""
        return {name: mask_of(change) for name, change in self.changes.items()}
