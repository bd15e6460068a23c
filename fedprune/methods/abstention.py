"""What a client says of an expert that none of its tokens was routed to: nothing.

Its own mask of such a matrix would be one by magnitude, which is no news and would outvote the
clients that know better. It sends a mask that prunes nothing in its place; the server takes that
of experts alone, and counts it neither for nor against a weight. Where nobody knows more, weights
go by magnitude.
"""

from collections.abc import Mapping

import numpy as np

from fedprune.pruning.statistics import Statistic
from fedprune.wire.masks import BitMask


def abstentions(
    statistics: Mapping[str, Statistic], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, BitMask]:
    """Return masks that prune nothing, of the linears of which a client has seen no token.

    `statistics`: name of the linear -> what it was pruned on; none where a pruner looks at no text.
    """
    unseen = [name for name in shapes if name in statistics and not statistics[name].tokens]
    return {name: BitMask.from_bool(np.ones(shapes[name], dtype=np.bool_)) for name in unseen}


def abstains(mask: BitMask) -> bool:
    """Whether a mask prunes nothing."""
    return mask.survivors == mask.numel
