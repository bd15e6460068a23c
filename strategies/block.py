"""What a strategy hands over for each aggregated block."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedprune.wire.bitmask import BitMask


@dataclass(frozen=True)
class BlockResult:
    """One aggregated block.

    Attributes
    ----------
    block : int
        Its index.
    masks : Mapping[str, BitMask]
        Name of the linear -> global mask.
    histograms : Mapping[str, NDArray]
        Name of the linear -> weights with 0..voters prune votes.
    voters : int
        Clients whose masks were counted.
    """

    block: int
    masks: Mapping[str, BitMask]
    histograms: Mapping[str, NDArray[np.int64]]
    voters: int
