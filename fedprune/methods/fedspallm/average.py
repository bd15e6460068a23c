"""FedSpaLLM's server step: the mean of what clients kept, and a mask of the global sparsity.

Bai et al., "FedSpaLLM" (arXiv 2410.14852), Eqs. 5 to 7. A client's weights are added as differences
from the public weights, in whole steps: integers add without rounding, so that the order in which
clients arrive does not show, and clients that changed nothing give the public weights back bit for
bit. Memory is 8 bytes a weight and the votes, whatever the number of clients.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from logging import WARNING, getLogger
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError, QuorumError, WireError
from fedprune.jit import jit
from fedprune.methods.abstention import abstains
from fedprune.methods.agreement import MaskSampler
from fedprune.methods.exchange import (
    BlockAggregator,
    BlockExchange,
    BlockResult,
    BlockTask,
    Contributor,
)
from fedprune.methods.state import Arrays, gathered, scattered
from fedprune.methods.vote_selection import Rule, select, select_nm
from fedprune.methods.votes import VoteCounter, checked_votes
from fedprune.methods.word_sums import Layout, Words, prefixed
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.groups import MaskSpec, block_spec, check_mask
from fedprune.pruning.registry import make_pruner
from fedprune.pruning.wanda import MagnitudePruner
from fedprune.seeds import derive_seed
from fedprune.wire.changes import Change, SparseWeight, decode_update, mask_of
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
        exponent = math.frexp(largest)[1]  # largest < 2**exponent; 0 where all are zero
        digits = min(_DIGITS, 63 - _ROOM - total.bit_length())
        self._scale = 2.0 ** (digits - exponent)
        self._limit = (2.0**_ROOM - 1) * 2.0**exponent
        self._sums: NDArray[np.int64] = np.zeros(base.numel(), dtype=np.int64)

    def add(self, change: SparseWeight, weight: int = 1) -> None:
        """Add what one client kept, which was checked, its weight times."""
        self.votes.add(change.mask, weight)
        place = 0
        for start, stop, base in self._chunks():
            bits = change.mask.bits[start // 8 : packed_size(stop)]
            kept = popcount(bits)
            if kept:
                values = change.values[place : place + kept].to(torch.float32).numpy()
                fold(values, bits, base, self._scale, weight, self._sums[start:stop])
            place += kept

    def check(self, change: SparseWeight) -> None:
        """Refuse another shape, and weights that are NaN or 15 times as large as public ones."""
        if change.shape != self.shape:
            raise WireError(
                f"It has {_times(change.shape)} weights, expected {_times(self.shape)}."
            )
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


_log = getLogger("flwr")

# How far survivors may move, in norms of the public weights that were pruned. SparseGPT, ALPS and
# SparseSwaps on trained models and few texts stay below 1.8 in a matrix and 2.6 in a row.
_MATRIX = 4.0
_ROW = 12.0
_SLACK = 0.01  # of the public norm: what rounding moves where little is pruned
_LOOKED_AT = 1 << 20  # weights of a step of the check


class SurvivorAggregator(BlockAggregator[dict[str, SparseWeight]]):
    """Sums of what clients kept of one block, and votes."""

    sums_integers = True

    def __init__(self, exchange: BlockExchange, task: BlockTask) -> None:
        super().__init__(exchange, task)
        config, block, model = exchange.config, task.block, task.model
        self._spec = block_spec(config, block, model.num_blocks)
        self._moves = make_pruner(config.pruner).updates or task.round > 1
        self._sampler = MaskSampler.of_block(model, block, config.seed)
        self._sums = {
            name: WeightSums(self.weight(name), task.total_weight) for name in self.shapes
        }

    def check(self, payload: bytes, client: Contributor) -> dict[str, SparseWeight]:
        """Decode a client's survivors, which must be of the model's type and range.

        A mask alone that prunes nothing of an expert is none: the client has not seen it.
        """
        routed = self.task.model.routed(self.task.block)
        found = {
            name: self._checked(change, name)
            for name, change in decode_update(payload, self.shapes).items()
            if not (name in routed and isinstance(change, BitMask) and abstains(change))
        }
        for name, weight in found.items():
            check_mask(weight.mask, self._spec.of(name), name)
        return found

    def add(self, answer: dict[str, SparseWeight], client: Contributor) -> None:
        """Add one client's survivors."""
        for name, weight in answer.items():
            self._sums[name].add(weight, client.weight)
        masks = {name: BitMask.from_bool(np.ones(s, np.bool_)) for name, s in self.shapes.items()}
        masks |= {name: weight.mask for name, weight in answer.items()}
        self._sampler.add(client.name, masks)

    def layout(self, clients: int) -> Layout:
        """Return the words of a client's survivors of each linear."""
        return prefixed({n: one.layout(clients, self._moves) for n, one in self._sums.items()})

    def words(self, answer: dict[str, SparseWeight], client: Contributor, clients: int) -> Words:
        """Return one client's checked survivors as words."""
        return prefixed(
            {
                name: one.words(answer.get(name), clients, self._moves)
                for name, one in self._sums.items()
            }
        )

    def add_total(self, total: Mapping[str, NDArray[Any]], clients: Sequence[Contributor]) -> None:
        """Take the sums of all clients; each group has as many votes as they have survivors."""
        routed = self.task.model.routed(self.task.block)
        parts = checked_votes(total, len(clients), self._spec, self.shapes, routed)
        for name, part in parts.items():
            self._sums[name].add_total(part)

    def close(self) -> BlockResult:
        """Average the block; one that nobody reported stays as the round before left it."""
        config, block = self.exchange.config, self.task.block
        votes = {name: found.votes for name, found in self._sums.items()}
        heard = {name: (one.clients, one.effective_clients) for name, one in votes.items()}
        if not any(clients for clients, _ in heard.values()):
            _log.log(WARNING, "block %d: no client reported it; it stays as it was", block)
            return BlockResult(block, self.task.before, 0, 0.0)
        specs = self.exchange.result_spec(block, self.task.model.num_blocks)
        strategy, pattern = config.strategy, config.pruner.pattern
        # In a first round a pruner that changes no weights leaves the public ones: masks say all.
        same = strategy.average == "l0" and not make_pruner(config.pruner).updates
        untouched = same and self.task.round == 1
        changes: dict[str, Change] = {}
        for name in list(self._sums):
            found, spec = self._sums.pop(name), specs.of(name)
            if not heard[name][0]:  # an expert that nobody's tokens reached
                changes[name] = self._by_magnitude(name, spec, untouched)
                continue
            mean = found.mean("l0" if strategy.average == "l0" else "fedavg")
            seed = derive_seed(config.seed, "ties", block, name)
            rule = Rule(ties=strategy.ties, seed=seed, rounding=spec.rounding)
            mask = expand(found, mean, spec.sparsity, pattern, rule, strategy.expansion)
            dtype = self.weight(name).dtype
            changes[name] = mask if untouched else SparseWeight.from_dense(mean.to(dtype), mask)
        histograms = {name: one.histogram() for name, one in votes.items() if one.clients}
        sample = self._sampler.close({name: mask_of(change) for name, change in changes.items()})
        return BlockResult.voted(block, changes, heard, histograms, sample)

    def state(self) -> Arrays:
        return gathered({**self._sums, "sample": self._sampler})

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        scattered(arrays, {**self._sums, "sample": self._sampler})

    def _by_magnitude(self, name: str, spec: MaskSpec, untouched: bool) -> Change:
        """Prune a weight that nobody averaged: as the round before left it, or the public one."""
        before = self.task.before.get(name)
        if before is not None:
            return before
        weight = self.weight(name)
        mask = MagnitudePruner().prune(weight, None, spec)
        return mask if untouched else SparseWeight.from_dense(weight, mask)

    def _checked(self, change: Change, name: str) -> SparseWeight:
        dtype = self.weight(name).dtype
        if not isinstance(change, SparseWeight) or change.values.dtype != dtype:
            raise WireError(f"linear '{name}': expected surviving weights of {dtype}.")
        try:
            self._sums[name].check(change)
            check_survivors(change, self.weight(name), self.task.round if self._moves else 0)
        except WireError as error:
            raise WireError(f"linear '{name}': {error}") from None
        return change


def check_survivors(change: SparseWeight, public: Tensor, rounds: int) -> None:
    """Refuse survivors that are further from the public weights than a solver moves them.

    What a solver changes makes up for what it has pruned, so the norm of the change is bounded by
    that of the pruned weights, in the whole matrix and in every row. Nothing but this client's
    answer is looked at: who answers first, or goes on after a kill, does not matter.

    `change`: a client's survivors, shape (d_out, d_in). `public`: the public weight, of the same
    shape. `rounds`: rounds in which survivors have moved; 0 where the pruner changes none. Raises
    WireError if they have moved too far.
    """
    survivors, kept = change.dense(), torch.from_numpy(change.mask.to_bool())
    rows = max(1, _LOOKED_AT // public.shape[1])
    moved, lost, norms = [], [], []
    for start in range(0, len(public), rows):
        place = slice(start, start + rows)
        own, weight, keep = survivors[place].float(), public[place].float(), kept[place]
        moved.append(_squares((own - weight).masked_fill(~keep, 0.0)))
        lost.append(_squares(weight.masked_fill(keep, 0.0)))
        norms.append(_squares(weight))
    squares = [np.concatenate(parts) for parts in (moved, lost, norms)]
    if not rounds:
        if squares[0].any():
            raise WireError("its pruner changes no weights, and its survivors are not the public.")
        return
    for what, most, parts in (
        ("its survivors differ", _MATRIX, [part.sum() for part in squares]),
        ("a row of its survivors differs", _ROW, squares),
    ):
        change_by, pruned, whole = (np.sqrt(part) for part in parts)
        far = change_by > rounds * most * pruned + _SLACK * whole
        if far.any():
            worst = np.max(np.where(far, change_by / np.maximum(pruned + _SLACK * whole, 1e-30), 0))
            raise WireError(
                f"{what} from the public weights by {worst:.3g} times the norm of what was "
                f"pruned; a solver stays below {rounds * most:g}."
            )


def _squares(rows: Tensor) -> NDArray[np.float64]:
    """Return the sum of squares of each row."""
    found: NDArray[np.float64] = rows.double().square_().sum(1).numpy()
    return found
