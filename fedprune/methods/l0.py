"""FedSpaLLM's server step: the mean of what clients kept, and a mask of the global sparsity.

Bai et al., "FedSpaLLM" (arXiv 2410.14852), Eqs. 5 to 7. A client's weights are added as differences
from the public weights, in whole steps: integers add without rounding, so that the order in which
clients arrive does not show, and clients that changed nothing give the public weights back bit for
bit. Memory is 8 bytes a weight and the votes, whatever the number of clients.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config.pattern import Pattern
from fedprune.errors import ConfigError, ModelError, QuorumError, WireError
from fedprune.jit import jit
from fedprune.methods.state import Arrays, gathered, scattered
from fedprune.methods.vote_selection import Rule, select, select_nm
from fedprune.methods.votes import VoteCounter
from fedprune.methods.word_sums import Layout, Words
from fedprune.privacy.secure_sums import WordSpec
from fedprune.wire.changes import SparseWeight
from fedprune.wire.masks import BitMask, packed_size, popcount

Average = Literal["l0", "fedavg"]

_MOST = (1 << 19) - 1  # the largest total weight that leaves all _DIGITS
_DIGITS = 40  # binary digits of a step below the largest public weight
_ROOM = 4  # binary digits that a client's weights may be larger than the largest public one
_CHUNK = 1 << 18  # weights of a step, whole bytes of mask


class WeightSums:
    """Running sums of one linear's weights over the clients that kept them.

    `base`: public weight, shape (d_out, d_in), float32, bfloat16 or float16. It is not copied where
    it is contiguous and on the CPU, and must not change. `total`: the largest sum of client weights
    there can be. Above half a million each doubling costs a binary digit of the 40 that a sum has
    below the largest public weight. Raises ModelError if the public weight holds NaN or infinite
    values.
    """

    def __init__(self, base: Tensor, total: int = _MOST) -> None:
        largest = _largest(base.detach())
        if not math.isfinite(largest):
            raise ModelError(
                "A public weight holds NaN or infinite values. Check the model's weights."
            )
        self.votes = VoteCounter(base.numel())
        self.shape: tuple[int, int] = (base.shape[0], base.shape[1])
        self._base = base.detach().cpu().contiguous().reshape(-1)
        self._total = total
        exponent = math.frexp(largest)[1]  # largest < 2**exponent; 0 where all are zero
        digits = min(_DIGITS, 63 - _ROOM - total.bit_length())
        self._scale = 2.0 ** (digits - exponent)
        self._limit = (2.0**_ROOM - 1) * 2.0**exponent
        self._sums: NDArray[np.int64] = np.zeros(base.numel(), dtype=np.int64)

    def add(self, change: SparseWeight | BitMask, weight: int = 1) -> None:
        """Add what one client kept; nothing is added if it is refused.

        `change`: the client's mask and surviving weights; a mask alone says that they are the
        public ones. `weight`: how often the client counts, at least 1. Raises WireError as
        :meth:`check`. Raises ConfigError if the weight is below 1, or the sum of weights is above
        the `total` given.
        """
        self.check(change)
        if self.votes.total + weight > self._total:
            raise ConfigError(
                f"`strategy.client_weights` may add up to {self._total}, got "
                f"{self.votes.total + weight}. Use `strategy.client_weights=equal`."
            )
        if isinstance(change, BitMask):
            self.votes.add(change, weight)
            return
        self.votes.add(change.mask, weight)
        place = 0
        for start, stop, base in self._chunks():
            bits = change.mask.bits[start // 8 : packed_size(stop)]
            kept = popcount(bits)
            if kept:
                values = change.values[place : place + kept].to(torch.float32).numpy()
                fold(values, bits, base, self._scale, weight, self._sums[start:stop])
            place += kept

    def check(self, change: SparseWeight | BitMask) -> None:
        """Refuse what :meth:`add` would refuse, and add nothing.

        Raises WireError if the shape is another, or a weight is NaN or more than 15 times as large
        as any public weight may be.
        """
        if change.shape != self.shape:
            raise WireError(
                f"It has {_times(change.shape)} weights, expected {_times(self.shape)}."
            )
        if isinstance(change, BitMask):
            return
        largest = _largest(change.values) if change.values.numel() else 0.0
        if not largest <= self._limit:  # so that NaN is refused, too
            raise WireError(
                f"Its largest weight is {largest:g}, but with these public weights none may be "
                f"above {self._limit:g}. Its pruner has diverged; raise `pruner.damping` there."
            )

    def layout(self, clients: int, moves: bool) -> Layout:
        """Return the words of one client's survivors: its votes, and where they move their sums."""
        sums = {"sums": WordSpec(self._sums.size, 64)} if moves else {}
        return {**sums, **self.votes.layout(clients)}

    def words(self, change: SparseWeight | None, clients: int, moves: bool) -> Words:
        """Return one client's survivors as words; None abstains. Nothing was added before."""
        votes = self.votes.words(None if change is None else change.mask, clients)
        if not moves:
            return votes
        if change is not None:
            self.add(change)
        return {"sums": self._sums.view(np.uint64), **votes}

    def add_total(self, total: Mapping[str, NDArray[Any]]) -> None:
        """Take the sums of clients' words in place of their survivors; nothing was added before.

        Raises WireError if a sum is larger than that of so many clients can be.
        """
        sums = total["sums"].view(np.int64) if "sums" in total else self._sums
        most = total["keeps"].astype(np.float64) * (self._limit * 2 * self._scale)
        if (np.abs(sums.astype(np.float64)) > most).any():
            raise WireError("a sum of weights is larger than those of its clients can be.")
        self.votes.add_total(total)
        self._sums[:] = sums

    def mean(self, kind: Average) -> Tensor:
        """Return the aggregated weight, float32, shape (d_out, d_in).

        'l0' is the mean over the clients that kept a weight (Eq. 5); 'fedavg' that over all
        clients, for whom what they pruned is zero, which shrinks contested weights. Both are 0
        where nobody kept it. Computed in float64 from the exact sums and rounded to float32.

        Raises QuorumError if no client was added.
        """
        total = self.votes.total
        if not total:
            raise QuorumError("No client pruned this linear, so there is no mean of its weights.")
        mean = np.empty(self._sums.size, dtype=np.float32)
        for start, stop, base in self._chunks():
            keeps = total - self.votes.counts(start, stop).astype(np.int64)
            changes = self._sums[start:stop] / self._scale
            if kind == "l0":
                changes /= np.maximum(keeps, 1)
                mean[start:stop] = np.where(keeps > 0, base + changes, 0.0)
                # Also where the sign of a zero would be lost.
                np.copyto(mean[start:stop], base, where=(changes == 0) & (keeps > 0))
            else:
                mean[start:stop] = (keeps * base.astype(np.float64) + changes) / total
        return torch.from_numpy(mean).reshape(self.shape)

    def state(self) -> Arrays:
        """Return sums and votes as arrays."""
        return {"sums": self._sums, **gathered({"votes": self.votes})}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is of other weights."""
        scattered(arrays, {"votes": self.votes})
        self._sums[:] = arrays["sums"]

    def _chunks(self) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Yield start, stop and the public weights between them."""
        for start in range(0, self._base.numel(), _CHUNK):
            base = self._base[start : start + _CHUNK]
            yield start, start + base.numel(), base.to(torch.float32).numpy()


def expand(
    sums: WeightSums,
    mean: Tensor,
    sparsity: float,
    pattern: Pattern,
    rule: Rule,
    expansion: bool,
) -> BitMask:
    """Return which weights of the mean survive (adaptive mask expansion, Eqs. 6 and 7).

    Zeros of the mean are what all clients pruned, too few for the global sparsity. With expansion
    the most voted weights follow until it is reached, ``rule.rounding`` of s * d in each of the
    rule's groups ('ceil' and 'layer' in the paper); what all pruned has the most votes and comes
    first. Of an N:M pattern the N least voted of each group survive. With a pruner that changes no
    weights this is FedPrLLM's vote.

    `mean`: ``sums.mean(...)``, shape (d_out, d_in): of equally voted weights the smaller is pruned
    first, of equals the lower index. `sparsity`: share to prune, 0 <= sparsity < 1. `expansion`:
    false keeps whatever at least one client kept.
    """
    votes = sums.votes
    if not expansion:
        return BitMask.from_bool((votes.keeps(0, votes.numel) > 0).reshape(sums.shape))
    magnitude: NDArray[np.float32] = mean.abs().reshape(-1).numpy()
    if pattern.structured:
        return select_nm(votes, pattern, magnitude, sums.shape, rule)
    return select(votes, sparsity, magnitude, sums.shape, rule)


def _largest(values: Tensor) -> float:
    """Return the largest magnitude; NaN if there is one."""
    low, high = values.aminmax()
    return max(-float(low), float(high))


def _times(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


# Of a float64 between 2**52 and 2**53 the unit in the last place is 1. Adding this number rounds
# to a whole one, to even at halves, and leaves it in the lower bits, negative numbers included.
_ROUND = 1.5 * 2.0**52
_ROUND_BITS = int(np.float64(_ROUND).view(np.int64))
_TILE = 2048  # weights of a step: its buffers stay in a core's first cache


@jit
def fold(
    values: NDArray[np.float32],
    bits: NDArray[np.uint8],
    base: NDArray[np.float32],
    scale: float,
    weight: int,
    sums: NDArray[np.int64],
) -> None:
    """Add ``weight * round((value - base) * scale)`` to the sums of the weights that survive.

    `values`: of the survivors, in order; at least one. `bits`: packed mask, lowest bit first, with
    as many ones as there are values. `base`: shape (numel,). `scale`: a power of two; ``abs(value -
    base) * scale`` is at most 2**50. `sums`: shape (numel,), changed in place.
    """
    spread = np.empty(_TILE, np.float32)
    keep = np.empty(_TILE, np.float32)
    rounded = np.empty(_TILE, np.float64)
    codes = rounded.view(np.int64)
    place = 0
    last = values.size - 1
    for first in range(0, sums.size, _TILE):
        part = sums[first : first + _TILE]
        start = base[first : first + _TILE]
        for byte in range((part.size + 7) // 8):
            flags = bits[first // 8 + byte]
            for lane in range(8):
                spread[byte * 8 + lane] = values[min(place, last)]
                place += flags >> lane & 1
            for lane in range(8):
                keep[byte * 8 + lane] = flags >> lane & 1
        for j in range(part.size):
            # A pruned weight meets the value of another one; times zero it does not matter.
            difference = np.float64(spread[j]) - np.float64(start[j])
            rounded[j] = difference * (scale * keep[j]) + _ROUND
        for j in range(part.size):
            part[j] += (codes[j] - _ROUND_BITS) * weight
