"""What a client says of an expert that none of its tokens was routed to: nothing.

Its own mask of such a matrix would be one by magnitude, which is no news and would outvote the
clients that know better. It sends a mask that prunes nothing in its place; the server takes that
of experts alone, and counts it neither for nor against a weight. Where nobody knows more, weights
go by magnitude.
"""

from collections.abc import Mapping

import numpy as np

from fedprune.pruning.statistics import Statistic
from fedprune.wire.changes import Change
from fedprune.wire.masks import BitMask


def answered(
    changes: Mapping[str, Change], statistics: Mapping[str, Statistic]
) -> dict[str, Change]:
    """Return a client's changes, with a mask that prunes nothing where it has seen no token.

    `changes`: name of the linear -> what the client's pruner makes of it. `statistics`: name of the
    linear -> what it was pruned on; none where a pruner looks at no text.
    """
    return {
        name: change
        if name not in statistics or statistics[name].tokens
        else BitMask.from_bool(np.ones(change.shape, dtype=np.bool_))
        for name, change in changes.items()
    }


def abstains(mask: BitMask) -> bool:
    """Whether a mask prunes nothing."""
    return mask.survivors == mask.numel
