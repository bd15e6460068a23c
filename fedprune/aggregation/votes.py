"""Count votes without ever unpacking a mask: one bit plane per binary digit of the counter.

Waiting masks are added eight at a time by a carry-save tree of bitwise operations on 64 weights a
word. Counters are as wide as the number of clients asks for, so none can overflow. Inside, the
planes count the clients that *keep* a weight, which is what a mask's bits say; votes, the clients
that prune it, are the rest.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.wire.bitmask import BitMask, packed_size

Words = NDArray[np.uint64]

_WAITING = 8  # masks added per step: one byte a weight while counting
_WORDS = 8192  # words of a step: eight masks, eight planes and a scratch row stay in a 1 MB cache
_WEIGHTS = 1 << 18  # weights unpacked at a time


class VoteCounter:
    """How many clients prune each weight of one linear.

    Parameters
    ----------
    numel : int
        Number of weights.
    """

    def __init__(self, numel: int) -> None:
        """Start with no client."""
        self.numel = numel
        self._planes: list[Words] = []
        self._waiting: Words | None = None
        self._queued = 0
        self._counted = 0

    @property
    def clients(self) -> int:
        """Number of masks added."""
        return self._counted + self._queued

    def add(self, mask: BitMask) -> None:
        """Add one client's mask; its bits are copied, so the message may be dropped.

        Raises
        ------
        WireError
            If the mask has another number of weights.
        """
        if mask.numel != self.numel:
            raise WireError(
                f"Votes are counted for {self.numel} weights, got a mask of {mask.numel}."
            )
        if self._waiting is None:
            self._waiting = np.zeros((_WAITING, _words(self.numel)), dtype=np.uint64)
        self._waiting[self._queued].view(np.uint8)[: mask.bits.size] = mask.bits
        self._queued += 1
        if self._queued == _WAITING:
            self._add_waiting()

    def keep_planes(self) -> tuple[Words, ...]:
        """Return the binary digits of the number of clients that keep each weight.

        Lowest digit first; each plane has a bit per weight, padded with zeros to whole words.
        """
        self._add_waiting()
        self._waiting = None
        return tuple(self._planes)

    def counts(self, start: int, stop: int) -> NDArray[np.uint16 | np.uint32]:
        """Return the votes (clients that prune) of weights start..stop, flat indices.

        uint16 up to 65,535 clients, uint32 above.
        """
        wide = self.clients > np.iinfo(np.uint16).max
        dtype = np.dtype(np.uint32 if wide else np.uint16)
        keeps: NDArray[np.uint16 | np.uint32] = np.zeros(stop - start, dtype=dtype)
        planes = self.keep_planes()
        for lowest in range(0, len(planes), 8):  # a byte's worth of digits, highest first
            digits = np.zeros(keeps.size, dtype=np.uint8)
            for plane in reversed(planes[lowest : lowest + 8]):
                digits += digits
                digits |= _flags(plane, start, stop)
            np.bitwise_or(keeps, np.left_shift(digits, lowest, dtype=dtype), out=keeps)
        np.subtract(self.clients, keeps, out=keeps)
        return keeps

    def histogram(self) -> NDArray[np.int64]:
        """Return how many weights have each number of votes, shape (clients + 1,)."""
        total = np.zeros(self.clients + 1, dtype=np.int64)
        for start in range(0, self.numel, _WEIGHTS):
            votes = self.counts(start, min(start + _WEIGHTS, self.numel))
            total += np.bincount(votes, minlength=total.size)
        return total

    def _add_waiting(self) -> None:
        if self._waiting is None or not self._queued:
            return
        self._counted += self._queued
        while len(self._planes) < self._counted.bit_length():
            self._planes.append(np.zeros(_words(self.numel), dtype=np.uint64))
        scratch = np.empty(_WORDS, dtype=np.uint64)
        for part in _slices(_words(self.numel)):
            _add(
                [plane[part] for plane in self._planes],
                [mask[part] for mask in self._waiting[: self._queued]],
                scratch[: part.stop - part.start],
            )
        self._queued = 0


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
