"""Who takes part in a run's secure sums, as all of them must see it, and what they sign and bind.

All positions are those of the participants' names, sorted.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.privacy.secure_sums import SumPlan, bound
from fedprune.wire.arrays import Arrays, ArraySpec

DEGREE = 100
COMPLETE = DEGREE + 1
"""Up to so many clients each is a neighbour of every other."""
ADVERT, COHORT = "secure-sums advert", "secure-sums cohort"
"""What signatures are for."""

Bits = NDArray[np.uint8]


def quorum(clients: int) -> int:
    """Return how many of the clients must answer and sign: two thirds, rounded up."""
    return -(-2 * clients // 3)


@dataclass(frozen=True)
class Neighbours:
    """Who shares masks and secrets with whom: everybody, or a random regular graph of a seed.

    The graph joins each client with those that stand at 50 distances, both ways, from it in a ring.
    The places in the ring and the distances are in the order of hashes of the seed.
    """

    clients: int
    seed: bytes = field(repr=False)  # what all clients' fresh keys have gone into

    @property
    def threshold(self) -> int:
        """Shares that open a secret: more than half of the holders, two thirds if all are."""
        return quorum(self.clients) if self.clients <= COMPLETE else DEGREE // 2 + 1

    @property
    def degree(self) -> int:
        """Neighbours of each client."""
        return min(self.clients - 1, DEGREE)

    @cached_property
    def holders(self) -> NDArray[np.int64]:
        """Each client's neighbours and itself, sorted: who holds shares of its secrets.

        Shape (clients, degree + 1). They are also those of whose secrets it holds shares. The
        holder in column i has shares number i + 1.
        """
        everybody = np.arange(self.clients)
        if self.clients <= COMPLETE:
            return np.broadcast_to(everybody, (self.clients, self.clients))
        ring = self._by_hash("place", everybody)
        places = np.argsort(ring)
        far = self._by_hash("distance", np.arange(1, (self.clients + 1) // 2))[: DEGREE // 2]
        steps = np.concatenate(([0], far, -far))
        return np.sort(ring[(places[:, None] + steps) % self.clients], axis=1)

    @cached_property
    def columns(self) -> NDArray[np.int64]:
        """In which column of a holder's row each dealer stands, of the shape of :attr:`holders`.

        That of holder ``holders[dealer, i]`` is ``columns[dealer, i]``.
        """
        rows = (np.argmax(self.holders[row] == one, 1) for one, row in enumerate(self.holders))
        return np.stack(list(rows))

    def column(self, dealer: int, holder: int) -> int:
        """Return the column of a holder in its dealer's row."""
        return int(np.searchsorted(self.holders[dealer], holder))

    def _by_hash(self, label: str, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        def digest(number: int) -> bytes:
            return hashlib.sha256(bound(label, self.seed, _number(number))).digest()

        return np.array(sorted(numbers.tolist(), key=digest))


@dataclass(frozen=True)
class Roll:
    """The participants of a run: whose adverts are in."""

    plan: SumPlan  # what they will be asked for
    names: tuple[str, ...]  # sorted
    digests: tuple[bytes, ...] = field(repr=False)  # of their adverts, `advert_digest`

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.names)

    @property
    def quorum(self) -> int:
        """How many must be in a sum, sign its list and open it."""
        return quorum(self.size)

    @property
    def least(self) -> int:
        """The fewest that a sum may be of, by plan and quorum."""
        return max(self.quorum, self.plan.floor)

    @cached_property
    def digest(self) -> bytes:
        """What binds all that is said later to these participants and their keys."""
        names = json.dumps(self.names).encode()
        return hashlib.sha256(
            bound("roll", self.plan.digest, names, b"".join(self.digests))
        ).digest()

    @cached_property
    def neighbours(self) -> Neighbours:
        """Who shares masks and secrets with whom."""
        return Neighbours(self.size, self.digest)

    @cached_property
    def places(self) -> dict[str, int]:
        """Name -> position."""
        return {name: place for place, name in enumerate(self.names)}

    def box_binding(self, sender: int, receiver: int) -> bytes:
        """Return what shares are bound to on their way from one to another."""
        return bound("shares", self.digest, *self._encoded(sender, receiver))

    def pair_binding(self, key: int, context: bytes, one: int, other: int) -> bytes:
        """Return what the mask of two clients under one of the plan's keys is bound to."""
        pair = self._encoded(min(one, other), max(one, other))
        return bound("pair mask", self.digest, _number(key), context, *pair)

    def own_binding(self, key: int, client: int) -> bytes:
        """Return what a client's self mask under one of the plan's keys is bound to."""
        return bound("self mask", self.digest, _number(key), *self._encoded(client))

    def statement(self, members: Bits, key: int, sum_name: str, cohort: Bits) -> bytes:
        """Return what is signed of who is in a sum."""
        parts = (self.digest, members.tobytes(), _number(key), sum_name.encode(), cohort.tobytes())
        return bound("cohort", *parts)

    def is_joined(self, cohort: Bits) -> bool:
        """Whether each client of a cohort has so many neighbours in it that one is honest.

        Where all are neighbours, the quorum sees to that.
        """
        if self.size <= COMPLETE:
            return True
        inside = cohort[self.neighbours.holders[cohort > 0]].sum(1, dtype=np.int64)
        return bool((inside > self.neighbours.threshold).all())  # itself not counted

    def _encoded(self, *places: int) -> tuple[bytes, ...]:
        return tuple(self.names[place].encode() for place in places)


def advert_digest(channel: bytes, keys: Bits, commitments: bytes) -> bytes:
    """Return the SHA-256 of an advert: the channel's key, the plan's, the seeds' commitments."""
    return hashlib.sha256(bound("advert", channel, keys.tobytes(), commitments)).digest()


def commitments_digest(commitments: Bits) -> bytes:
    """Return the SHA-256 of commitments to self seeds, shape (keys, 32)."""
    return hashlib.sha256(bound("commitments", commitments.tobytes())).digest()


def commitment(seed: bytes) -> bytes:
    """Return what is known of a self seed before it is opened."""
    return hashlib.sha256(bound("commitment", seed)).digest()


def advert_statement(plan: SumPlan, digest: bytes) -> bytes:
    """Return what a client signs of its advert."""
    return bound("signed advert", plan.digest, digest)


def context_digest(context: bytes) -> bytes:
    """Return the SHA-256 of what clients were told before they answered."""
    return hashlib.sha256(bound("context", context)).digest()


def take_bits(arrays: Arrays, name: str, size: int) -> Bits:
    """Take a list of who is in out of a message, 0 or 1 a participant; else WireError."""
    bits = arrays.take(name, ArraySpec("uint8", (size,)))
    if bits.max(initial=0) > 1:
        raise WireError(f"'{name}' must be 0 or 1 for each participant.")
    return bits


def listed(names: Sequence[str], bits: Bits) -> tuple[str, ...]:
    """Return the names that are in a list."""
    return tuple(name for name, there in zip(names, bits, strict=True) if there)


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")
