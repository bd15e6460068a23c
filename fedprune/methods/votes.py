"""Count votes without ever unpacking a mask: one bit plane per binary digit of the counter.

Waiting masks of weight one are added eight at a time by a carry-save tree of bitwise operations on
64 weights a word; a mask of another weight is added to all digits in one ripple. Counters are as
wide as the total asks for, so none can overflow. Inside, the planes count the clients that *keep* a
weight, which is what a mask's bits say; votes, the clients that prune it, are the rest.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import ConfigError, WireError
from fedprune.methods.state import Arrays, numbers
from fedprune.methods.word_sums import Layout, counter_bits, part_of
from fedprune.methods.word_sums import Words as Sent
from fedprune.privacy.secure_sums import WordSpec
from fedprune.pruning.groups import BlockSpec, check_votes
from fedprune.wire.masks import BitMask, packed_size

Words = NDArray[np.uint64]
Votes = NDArray[np.unsignedinteger[Any]]

BINS = 1 << 12  # a histogram's entries beyond which votes are gathered in bins
MAX_TOTAL = (1 << 32) - 1  # votes are at most uint32

_WAITING = 8  # masks added per step: one byte a weight while counting
_WORDS = 8192  # words of a step: eight masks, eight planes and a scratch row stay in a 1 MB cache
_WEIGHTS = 1 << 18  # weights unpacked at a time


class VoteCounter:
    """How many clients prune each weight of one linear; a client may count for several."""

    def __init__(self, numel: int) -> None:
        """Start with no client."""
        self.numel = numel
        self._room: Words = np.zeros((0, _words(numel)), dtype=np.uint64)
        self._planes = self._room
        self._waiting: Words | None = None
        self._queued = 0
        self._clients = 0
        self._total = 0
        self._squares = 0

    @property
    def clients(self) -> int:
        """Number of masks added."""
        return self._clients

    @property
    def total(self) -> int:
        """Sum of the weights of the masks added: the votes of a weight that all prune."""
        return self._total

    @property
    def half(self) -> int:
        """The votes to keep from which on no majority prunes."""
        return (self._total + 1) // 2

    @property
    def effective_clients(self) -> float:
        """Number of clients of equal weight that are as diverse, (sum w)^2 / sum w^2.

        The number of clients where all weigh the same; 0.0 without clients.
        """
        return self._total**2 / self._squares if self._squares else 0.0

    def add(self, mask: BitMask, weight: int = 1) -> None:
        """Add one client's mask; its bits are copied, so the message may be dropped.

        `weight`: for how many votes it counts, at least 1. Raises WireError if the mask has another
        number of weights. Raises ConfigError if the weight is below 1, or the total would no longer
        fit 32 bits.
        """
        if mask.numel != self.numel:
            raise WireError(
                f"Votes are counted for {self.numel} weights, got a mask of {mask.numel}."
            )
        _check_weight(weight, self._total)
        self._clients += 1
        self._total += weight
        self._squares += weight**2
        if weight == 1:
            self._queue(mask)
        else:
            self._add_weighted(mask, weight)

    def planes(self) -> Words:
        """Return the binary digits of the votes to keep, lowest first, shape (digits, words).

        Weight ``i`` is bit ``i % 64`` of word ``i // 64``. It is what the counter counts with.
        """
        self._add_waiting()
        self._waiting = None
        return self._planes

    def keeps(self, start: int, stop: int) -> Votes:
        """Return the votes to keep weights start..stop, in the narrowest type for the total."""
        planes, dtype = self.planes(), np.min_scalar_type(self.total)
        keeps: Votes = np.zeros(stop - start, dtype=dtype)
        for first in range(start, stop, _WEIGHTS):
            last = min(first + _WEIGHTS, stop)
            part = keeps[first - start : last - start]
            for lowest in range(0, len(planes), 8):  # a byte's worth of digits, highest first
                digits = np.zeros(part.size, dtype=np.uint8)
                for plane in planes[lowest : lowest + 8][::-1]:
                    digits += digits
                    digits |= _flags(plane, first, last)
                np.bitwise_or(part, np.left_shift(digits, lowest, dtype=dtype), out=part)
        return keeps

    def counts(self, start: int, stop: int) -> NDArray[np.uint16 | np.uint32]:
        """Return the votes to prune weights start..stop, flat indices.

        uint16 where the total is at most 65,535, uint32 above.
        """
        dtype = np.promote_types(np.min_scalar_type(self.total), np.uint16)
        votes: NDArray[np.uint16 | np.uint32] = self.keeps(start, stop).astype(dtype)
        return np.subtract(self.total, votes, out=votes)

    def layout(self, clients: int) -> Layout:
        """Return the words of one client's vote, where so many clients vote."""
        bits = counter_bits(clients)
        return {"keeps": WordSpec(self.numel, bits), "clients": WordSpec(1, bits)}

    def words(self, mask: BitMask | None, clients: int) -> Sent:
        """Return one client's vote as words: to keep, weight by weight; None abstains."""
        layout = self.layout(clients)
        if mask is None:
            return {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.items()}
        keeps = mask.to_bool().reshape(-1).astype(layout["keeps"].dtype)
        return {"keeps": keeps, "clients": np.ones(1, layout["clients"].dtype)}

    def add_total(self, total: Mapping[str, NDArray[Any]]) -> None:
        """Take the sums of clients' words in place of their masks; nothing was added before.

        Raises WireError if a weight has more votes than there are clients.
        """
        keeps, (clients,) = total["keeps"], (int(n) for n in total["clients"])
        if keeps.max(initial=0) > clients:
            raise WireError(f"a weight has {int(keeps.max())} votes of {clients} clients.")
        self._clients = self._total = self._squares = clients
        self._widen()
        for digit, plane in enumerate(self._planes):
            bits = np.packbits(keeps >> digit & 1, bitorder="little")
            plane.view(np.uint8)[: bits.size] = bits

    def histogram(self) -> NDArray[np.int64]:
        """Return how many weights have each number of votes, shape (total + 1,).

        Totals above `BINS` are gathered in `BINS` + 1 entries: the first and the last still hold
        the weights that nobody and that everybody prunes, and entry i those with a share of votes
        of i / `BINS`, rounded up or down to the next entry between.
        """
        found = np.zeros(min(self.total, BINS) + 1, dtype=np.int64)
        for start in range(0, self.numel, _WEIGHTS):
            votes = self.counts(start, min(start + _WEIGHTS, self.numel))
            bins = votes if self.total <= BINS else _binned(votes, self.total)
            found += np.bincount(bins, minlength=found.size)
        return found

    def state(self) -> Arrays:
        """Return the counters as arrays."""
        planes = {f"plane-{digit}": plane for digit, plane in enumerate(self.planes())}
        return {**planes, "counts": numbers(self._clients, self._total, self._squares)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if that is another counter's."""
        self._clients, self._total, self._squares = (int(n) for n in arrays["counts"])
        self._widen()
        for digit, plane in enumerate(self._planes):
            plane[:] = arrays[f"plane-{digit}"]

    def _queue(self, mask: BitMask) -> None:
        if self._waiting is None:
            self._waiting = np.zeros((_WAITING, _words(self.numel)), dtype=np.uint64)
        self._waiting[self._queued].view(np.uint8)[: mask.bits.size] = mask.bits
        self._queued += 1
        if self._queued == _WAITING:
            self._add_waiting()

    def _add_waiting(self) -> None:
        self._widen()
        if self._waiting is None or not self._queued:
            return
        scratch = np.empty(_WORDS, dtype=np.uint64)
        for part in _slices(_words(self.numel)):
            _add(
                [plane[part] for plane in self._planes],
                [mask[part] for mask in self._waiting[: self._queued]],
                scratch[: part.stop - part.start],
            )
        self._queued = 0

    def _add_weighted(self, mask: BitMask, weight: int) -> None:
        self._widen()
        words = np.zeros(_words(self.numel), dtype=np.uint64)
        words.view(np.uint8)[: mask.bits.size] = mask.bits
        work = np.empty((3, _WORDS), dtype=np.uint64)
        for part in _slices(words.size):
            planes = [plane[part] for plane in self._planes]
            _ripple(planes, words[part], weight, work[:, : part.stop - part.start])

    def _widen(self) -> None:
        digits = self._total.bit_length()
        if digits > len(self._room):
            room = np.zeros((max(digits, 2 * len(self._room)), _words(self.numel)), dtype=np.uint64)
            room[: len(self._room)] = self._room
            self._room = room
        self._planes = self._room[:digits]


def checked_votes(
    total: Mapping[str, NDArray[Any]],
    clients: int,
    spec: BlockSpec,
    shapes: Mapping[str, tuple[int, int]],
    routed: Collection[str],
) -> dict[str, Sent]:
    """Return sums of a block's votes by linear; none that so many clients' masks cannot come to.

    `total`: sums of :meth:`VoteCounter.words`, and what goes with them, each behind its linear's
    name. `spec`: what every client's masks look like. `shapes`: name of the linear -> (d_out,
    d_in). Raises WireError saying what is wrong, and of which linear.
    """
    parts = {name: part_of(total, name) for name in shapes}
    for name, part in parts.items():
        (voters,) = (int(n) for n in part["clients"])
        if voters > clients or (voters < clients and name not in routed):
            raise WireError(f"linear '{name}': {voters} votes of {clients} clients.")
        check_votes(part["keeps"].reshape(shapes[name]), voters, spec.of(name), name)
    return parts


def _check_weight(weight: int, total: int) -> None:
    if weight < 1:
        raise ConfigError(
            f"`strategy.client_weights` must give each client a weight of at least 1, got {weight}."
        )
    if total + weight > MAX_TOTAL:
        raise ConfigError(
            f"`strategy.client_weights` may add up to {MAX_TOTAL}, got {total + weight}. "
            "Use `strategy.client_weights=samples` or `equal`, or fewer samples per client."
        )


def _binned(votes: NDArray[np.uint16 | np.uint32], total: int) -> NDArray[np.int64]:
    """Return each vote's bin; only 0 has the first, only the total the last."""
    wide = votes.astype(np.int64)
    return np.where(wide > 0, 1 + (wide - 1) * (BINS - 1) // (total - 1), 0)


def _words(numel: int) -> int:
    return (numel + 63) // 64


def _flags(words: Words, start: int, stop: int) -> NDArray[np.uint8]:
    """Return bits start..stop as bytes of 0 and 1."""
    packed = words.view(np.uint8)[start // 8 : packed_size(stop)]
    return np.unpackbits(packed, count=stop - start // 8 * 8, bitorder="little")[start % 8 :]


def _slices(words: int) -> Iterator[slice]:
    for start in range(0, words, _WORDS):
        yield slice(start, min(start + _WORDS, words))


def _add(planes: list[Words], inputs: list[Words], scratch: Words) -> None:
    """Add one-bit numbers to the counters in `planes`; the inputs are overwritten.

    On each plane a full adder takes two inputs of that digit and leaves one carry for the next.
    """
    for plane in planes:
        for first, second in zip(inputs[::2], inputs[1::2], strict=False):
            np.bitwise_xor(first, second, out=scratch)
            np.bitwise_and(first, second, out=first)
            np.bitwise_and(scratch, plane, out=second)
            np.bitwise_or(first, second, out=first)  # the carry
            np.bitwise_xor(plane, scratch, out=plane)
        if len(inputs) % 2:
            single = inputs[-1]
            np.bitwise_xor(plane, single, out=plane)
            # Carry where both were set, that is where the input is and the sum is not.
            np.bitwise_and(single, np.bitwise_not(plane, out=scratch), out=single)
        inputs = inputs[::2]


def _ripple(planes: list[Words], mask: Words, weight: int, work: Words) -> None:
    """Add `weight` to the counters in `planes` wherever the mask is set; `work` is three rows."""
    carry, both, sums = work
    carry[:] = 0
    for digit, plane in enumerate(planes):
        if weight >> digit & 1:
            np.bitwise_xor(plane, mask, out=both)
            np.bitwise_and(plane, mask, out=plane)
            np.bitwise_xor(both, carry, out=sums)
            np.bitwise_and(both, carry, out=both)
            np.bitwise_or(plane, both, out=carry)
            plane[:] = sums
        else:
            np.bitwise_and(plane, carry, out=both)
            np.bitwise_xor(plane, carry, out=plane)
            carry[:] = both
