"""How far clients agree: from the histogram of votes, and client by client on sampled weights.

Masks are counted and dropped, so who agrees with whom cannot be told afterwards. A few bits of each
mask can: of 65,536 weights of a model a share is known to 0.2 percentage points (one standard
error), in 8 kB a client.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.methods.public_model import PublicModel
from fedprune.methods.state import Arrays
from fedprune.seeds import derive_seed
from fedprune.wire.masks import BitMask, popcount


def pairwise_agreement(histogram: NDArray[np.int64], clients: float) -> float:
    """Return the share of weights on which two clients agree, averaged over all pairs of clients.

    A weight with v votes among m clients is agreed on by C(v, 2) + C(m - v, 2) of C(m, 2) pairs.
    Where clients count for several votes, so do their pairs: a pair weighs the product of both.
    With x the share of votes and n the effective number of clients, both cases are
    (x^2 + (1 - x)^2 - 1/n) / (1 - 1/n).

    `histogram`: number of weights by votes, evenly spaced from none to all, shape (total + 1,) or
    fewer where votes were gathered in bins. `clients`: number of clients, or
    `VoteCounter.effective_clients` where they are weighted; a single client agrees with itself
    (1.0).
    """
    if clients <= 1:
        return 1.0
    share = np.linspace(0.0, 1.0, histogram.size)
    same = (share**2 + (1.0 - share) ** 2 - 1.0 / clients) / (1.0 - 1.0 / clients)
    mean = float(same @ histogram) / int(histogram.sum())
    return min(max(mean, 0.0), 1.0)  # bins and rounding must not leave the range


def unanimous_share(histogram: NDArray[np.int64]) -> float:
    """Return the share of weights that all clients keep or all prune, by a histogram as above."""
    if histogram.size == 1:
        return 1.0
    return int(histogram[0] + histogram[-1]) / int(histogram.sum())


def tied_weights(
    histogram: NDArray[np.int64], pruned: int, majority: bool = False
) -> tuple[int, int]:
    """Return how many weights share the vote count that decides, and how many of them are pruned.

    The most voted weights are pruned. Those at the last vote count that is reached are tied if not
    all of them are pruned: magnitude, index or chance has chosen among them. Without a tie both
    are 0.

    `histogram`: number of weights by votes of one comparison group, the whole matrix; where votes
    were gathered in bins, the weights of the deciding bin are counted. `majority`: whether all that
    at most half of the votes are for counts alike, as under `strategy.majority_floor`.
    """
    if not pruned:
        return 0, 0
    if majority:
        above = (len(histogram) - 1) // 2 + 1
        histogram = np.append(histogram[:above].sum(), histogram[above:])
    falling = histogram[::-1]
    reached = np.cumsum(falling)
    place = int(np.searchsorted(reached, pruned))
    tied, beyond = int(falling[place]), int(reached[place]) - pruned
    return (tied, tied - beyond) if beyond else (0, 0)


SAMPLED_WEIGHTS = 1 << 16
"""Weights of a whole model that are looked at."""


_NO_FLAGS = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True)
class BlockSample:
    """What the masks of one block say at the sampled places."""

    weights: int
    # packed bits of the global mask, shape (ceil(weights / 8),), padding bits zero
    result: NDArray[np.uint8]
    clients: Mapping[str, NDArray[np.uint8]]  # the same of each client's mask


class MaskSampler:
    """Keeps the bits of one block's masks at ``most`` random places, drawn once."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], most: int, seed: int) -> None:
        sizes = [rows * columns for rows, columns in shapes.values()]
        ends, total = np.cumsum(sizes, dtype=np.int64), sum(sizes)
        starts = ends - sizes
        self._weights = min(most, total)  # none of a block of which nothing is pruned
        generator = np.random.default_rng(seed)
        drawn = np.sort(generator.choice(total, self._weights, replace=False))
        edges = np.searchsorted(drawn, [*starts, total])
        parts = [drawn[first:last] for first, last in zip(edges, edges[1:], strict=False)]
        self._places = {
            name: part - start for name, part, start in zip(shapes, parts, starts, strict=True)
        }
        self._clients: dict[str, NDArray[np.uint8]] = {}

    @classmethod
    def of_block(cls, model: PublicModel, block: int, seed: int) -> "MaskSampler":
        """Return what keeps a few bits of a block's masks; the run's seed decides which."""
        most = max(1, SAMPLED_WEIGHTS // model.num_blocks)
        return cls(model.shapes[block], most, derive_seed(seed, "agreement", block))

    def add(self, client: str, masks: Mapping[str, BitMask]) -> None:
        """Keep the sampled bits of a client's masks of all linears."""
        self._clients[client] = self._sampled(masks)

    def close(self, masks: Mapping[str, BitMask]) -> BlockSample:
        """Return the sample, now that the global masks are known."""
        return BlockSample(self._weights, self._sampled(masks), self._clients)

    def state(self) -> Arrays:
        """Return the clients' bits by their names."""
        return dict(self._clients)

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`."""
        self._clients = dict(arrays)

    def _sampled(self, masks: Mapping[str, BitMask]) -> NDArray[np.uint8]:
        flags = [masks[name].bits[at >> 3] >> (at & 7) & 1 for name, at in self._places.items()]
        return np.packbits(np.concatenate([_NO_FLAGS, *flags]), bitorder="little")


def agreement_with_result(samples: Sequence[BlockSample]) -> dict[str, float]:
    """Return client -> share of sampled weights on which its mask is as the global one.

    Blocks that a client did not prune do not count for it.
    """
    same: dict[str, int] = {}
    weights: dict[str, int] = {}
    for sample in samples:
        for client, bits in sample.clients.items():
            same[client] = same.get(client, 0) + _same(sample, bits, sample.result)
            weights[client] = weights.get(client, 0) + sample.weights
    return {client: same[client] / weights[client] for client in same}


def agreement_matrix(
    samples: Sequence[BlockSample], clients: Sequence[str]
) -> list[list[float | None]]:
    """Return for each pair the share of sampled weights on which their masks are the same.

    None for two clients that have pruned no block in common.
    """
    same = np.zeros((len(clients), len(clients)), dtype=np.int64)
    weights = np.zeros_like(same)
    for sample in samples:
        here = [place for place, name in enumerate(clients) if name in sample.clients]
        for row in here:
            for column in here:
                if row <= column:
                    first, second = sample.clients[clients[row]], sample.clients[clients[column]]
                    same[row, column] += _same(sample, first, second)
                    weights[row, column] += sample.weights
    same, weights = np.maximum(same, same.T), np.maximum(weights, weights.T)
    shares = same / np.maximum(weights, 1)
    return [
        [float(share) if known else None for share, known in zip(*row, strict=True)]
        for row in zip(shares, weights, strict=True)
    ]


def extremes(agreement: Mapping[str, float], most: int) -> list[str]:
    """Return the clients that agree most and least with the result, at most so many, in order.

    `agreement`: :func:`agreement_with_result`, or any part of it, in the order wanted.
    """
    ranked = sorted(agreement, key=lambda name: agreement[name])
    low = most // 2
    kept = set(ranked if len(ranked) <= most else ranked[:low] + ranked[low - most :])
    return [name for name in agreement if name in kept]


def _same(sample: BlockSample, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> int:
    return sample.weights - popcount(np.bitwise_xor(first, second))
