"""The server's half of secure sums: it carries keys and shares, adds masked words, opens a sum."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import QuorumError, ReplyRefusedError, WireError, listing
from fedprune.privacy import shamir
from fedprune.privacy.secure_masks import (
    SEALED,
    add_stream,
    add_words,
    agreed_key,
    is_public_key,
    own_key,
    private_key,
    public_key,
)
from fedprune.privacy.secure_roll import (
    ADVERT,
    COHORT,
    Bits,
    Roll,
    advert_digest,
    advert_statement,
    commitment,
    commitments_digest,
    context_digest,
    listed,
)
from fedprune.privacy.secure_sums import (
    KEY,
    SIGNATURE,
    SumPlan,
    Verifier,
    names_array,
    read_names,
)
from fedprune.wire.arrays import ArraySpec, decode_arrays, encode_arrays

State = dict[str, NDArray[Any]]

_MOST_TRIES = 1000
_SEED, _PRIVATE_KEY = 0, 1


@dataclass(frozen=True)
class _Advert:
    """A client's public keys, as it signed them."""

    channel: Bits  # (32,)
    keys: Bits  # (keys, 32)
    commitments: Bits  # (keys, 32)
    signature: Bits  # (64,)

    @property
    def digest(self) -> bytes:
        told = commitments_digest(self.commitments)
        return advert_digest(self.channel.tobytes(), self.keys, told)


class SecureServer:
    """The set-up of a run's secure sums. Order of arrival never shows in anything.

    Every ``add_...`` checks all before it takes anything; the same bytes again change nothing.
    """

    def __init__(self, plan: SumPlan, roster: Verifier) -> None:
        self.plan = plan
        self._roster = roster
        self._adverts: dict[str, _Advert] = {}
        self._boxes: dict[str, Bits] = {}
        self._roll: Roll | None = None
        self._members: Bits | None = None

    @property
    def participants(self) -> tuple[str, ...]:
        """Whose adverts are in, sorted."""
        return tuple(sorted(self._adverts))

    @property
    def members(self) -> tuple[str, ...]:
        """Whose shares are in, sorted: who can take part in sums."""
        return tuple(sorted(self._boxes))

    @property
    def quorum(self) -> int:
        """How many must be in a sum, sign its list and answer its opening."""
        return self.roll.quorum

    @property
    def roll(self) -> Roll:
        """The participants, once adverts are closed; QuorumError before."""
        if self._roll is None:
            raise QuorumError("the adverts of secure sums are not closed yet.")
        return self._roll

    @property
    def joined(self) -> Bits:
        """Who is a member, by participant, once shares are closed; QuorumError before."""
        if self._members is None:
            raise QuorumError("the shares of secure sums are not closed yet.")
        return self._members

    def add_advert(self, name: str, data: bytes) -> None:
        """Take a client's advert; WireError, naming it, if it is not sound or not its own.

        ReplyRefusedError if it comes after :meth:`close_adverts`.
        """
        many = ArraySpec("uint8", (self.plan.keys, KEY))
        expected = {
            "channel": ArraySpec("uint8", (KEY,)),
            "keys": many,
            "commitments": many,
            "signature": ArraySpec("uint8", (SIGNATURE,)),
        }
        advert = _Advert(**_decoded(name, data, expected))
        before = self._adverts.get(name)
        if before is not None:
            if (before.digest, bytes(before.signature)) != (advert.digest, bytes(advert.signature)):
                raise WireError(f"'{name}' sent keys for this run's secure sums twice, and others.")
            return
        if self._roll is not None:
            raise ReplyRefusedError(f"'{name}' came too late for this run's secure sums.")
        statement = advert_statement(self.plan, advert.digest)
        signature = advert.signature.tobytes()
        run = self.plan.run
        if not self._roster.holds(name, signature, statement, purpose=ADVERT, run=run):
            raise WireError(f"the keys that '{name}' sent are not signed by a site of that name.")
        for public in (advert.channel, *advert.keys):
            if not is_public_key(public.tobytes()):
                raise WireError(f"among the keys that '{name}' sent is one that hides nothing.")
        self._adverts[name] = advert

    def close_adverts(self) -> None:
        """Take no more adverts; QuorumError if they are fewer than the plan's floor."""
        names = self.participants
        if len(names) < self.plan.floor:
            raise QuorumError(
                f"{len(names)} clients sent keys for secure sums, `privacy.min_cohort` is "
                f"{self.plan.floor}."
            )
        digests = tuple(self._adverts[name].digest for name in names)
        self._roll = Roll(self.plan, names, digests)

    def adverts_for(self, name: str) -> bytes:
        """Return what a participant is told of the others."""
        roll = self.roll
        adverts = [self._adverts[one] for one in roll.names]
        neighbours = [adverts[place] for place in self._neighbours(name)]
        told = [commitments_digest(one.commitments) for one in neighbours]
        return encode_arrays(
            {
                "names": names_array(roll.names),
                "digests": _rows(roll.digests),
                "signatures": np.stack([one.signature for one in adverts]),
                "channels": np.stack([one.channel for one in neighbours]),
                "keys": np.stack([one.keys for one in neighbours]),
                "commitments": _rows(told),
            }
        )

    def add_shares(self, name: str, data: bytes) -> None:
        """Take a participant's encrypted shares; WireError, naming it, if they do not fit.

        ReplyRefusedError if they come after :meth:`close_shares`.
        """
        self._place(name)
        shape = (self.roll.neighbours.degree, self._box_bytes)
        boxes = _decoded(name, data, {"boxes": ArraySpec("uint8", shape)})["boxes"]
        before = self._boxes.get(name)
        if before is not None:
            if not np.array_equal(before, boxes):
                raise WireError(f"'{name}' shared its secrets twice, and otherwise.")
            return
        if self._members is not None:
            raise ReplyRefusedError(f"'{name}' came too late for this run's secure sums.")
        self._boxes[name] = boxes

    def close_shares(self) -> None:
        """Take no more shares; QuorumError if they are of fewer than floor or quorum."""
        if len(self._boxes) < self.roll.least:
            raise QuorumError(
                f"{len(self._boxes)} of {self.roll.size} clients shared their secrets, at least "
                f"{self.roll.least} must."
            )
        self._members = np.array([name in self._boxes for name in self.roll.names], np.uint8)

    def boxes_for(self, name: str) -> bytes:
        """Return the shares that are encrypted for a member, and who the members are."""
        roll, own = self.roll, self._place(name)
        boxes = np.zeros((roll.neighbours.degree, self._box_bytes), np.uint8)
        for place, dealer in enumerate(self._neighbours(name)):
            if self.joined[dealer]:
                column = roll.neighbours.column(dealer, own)
                column -= dealer < own  # a dealer keeps its own
                boxes[place] = self._boxes[roll.names[dealer]][column]
        return encode_arrays({"members": self.joined, "boxes": boxes})

    def sum(self, name: str, context: bytes = b"") -> "MaskedSum":
        """Return a sum of the plan, empty; WireError if it is not planned.

        ``context`` is all that every client is told and that its words depend on.
        """
        return MaskedSum(self, name, self.plan.key_of(name), context_digest(context))

    def checked_public(self, place: int, key: int, kind: int, secret: bytes) -> bool:
        """Whether a secret is the self seed (0) or private key (1) that somebody advertised."""
        advert = self._adverts[self.roll.names[place]]
        if kind == _SEED:
            return commitment(secret) == bytes(advert.commitments[key])
        return public_key(secret) == bytes(advert.keys[key])

    def public_key(self, place: int, key: int) -> bytes:
        """Return a participant's public key for one of the plan's keys."""
        return bytes(self._adverts[self.roll.names[place]].keys[key])

    def holds(self, name: str, signature: bytes, statement: bytes) -> bool:
        """Whether a signature is a participant's on a list of who is in a sum."""
        run = self.plan.run
        return self._roster.holds(name, signature, statement, purpose=COHORT, run=run)

    def state(self) -> State:
        """Return all of the set-up as arrays, without the sums."""
        names, shared = self.participants, self.members
        adverts = [self._adverts[name] for name in names]
        keys, degree = self.plan.keys, 0 if self._roll is None else self._roll.neighbours.degree
        boxes = [self._boxes[name] for name in shared]
        return {
            "closed": np.array([self._roll is not None, self._members is not None], np.uint8),
            "participants": names_array(names),
            "members": names_array(shared),
            "channels": _stacked([one.channel for one in adverts], KEY),
            "keys": _stacked([one.keys for one in adverts], keys, KEY),
            "commitments": _stacked([one.commitments for one in adverts], keys, KEY),
            "signatures": _stacked([one.signature for one in adverts], SIGNATURE),
            "boxes": _stacked(boxes, degree, self._box_bytes),
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if the arrays are not such."""
        keys = (arrays[name] for name in ("channels", "keys", "commitments", "signatures"))
        adverts = [_Advert(*one) for one in zip(*keys, strict=True)]
        names, shared = (_names(arrays[name]) for name in ("participants", "members"))
        self._adverts = dict(zip(names, adverts, strict=True))
        self._boxes = dict(zip(shared, arrays["boxes"], strict=True))
        adverts_closed, shares_closed = arrays["closed"].tolist()
        if adverts_closed:
            self.close_adverts()
        if shares_closed:
            self.close_shares()

    @property
    def _box_bytes(self) -> int:
        return self.plan.keys * 2 * KEY + SEALED

    def _place(self, name: str) -> int:
        place = self.roll.places.get(name)
        if place is None:
            raise WireError(f"'{name}' takes no part in this run's secure sums.")
        return place

    def _neighbours(self, name: str) -> list[int]:
        own = self._place(name)
        return [one for one in self.roll.neighbours.holders[own].tolist() if one != own]


class MaskedSum:
    """One sum: masked words are folded in as they come, then who is in is fixed, then it opens.

    Made by :meth:`SecureServer.sum`. Every ``add...`` checks all before it takes anything; the same
    bytes again change nothing.

    `server`: whose shares are closed. `context`: SHA-256 of what clients were told.
    """

    def __init__(self, server: SecureServer, name: str, key: int, context: bytes) -> None:
        self._server, self._name, self._key, self._context = server, name, key, context
        self._roll, self._members = server.roll, server.joined
        self._message = server.plan.words(name).message
        spec = self._message["words"]
        self._running = np.zeros(spec.shape, spec.dtype)
        size, holders = self._roll.size, self._roll.neighbours.degree + 1
        self._digests = np.zeros((size, KEY), np.uint8)
        self._cohort: Bits | None = None
        self._signers = np.zeros(size, np.uint8)
        self._signatures = np.zeros((size, SIGNATURE), np.uint8)
        self._answered = np.zeros(size, np.uint8)
        self._given = np.zeros((size, holders), np.uint8)
        self._shares = np.zeros((size, holders, KEY), np.uint8)
        self._misfits = np.zeros((size, holders), bool)  # as the graph's holders

    @property
    def arrived(self) -> tuple[str, ...]:
        """Whose words are in, sorted."""
        return listed(self._roll.names, self._there)

    @property
    def missing(self) -> tuple[str, ...]:
        """Members whose words are not in, sorted."""
        return listed(self._roll.names, np.asarray(self._members > self._there, np.uint8))

    def add(self, name: str, data: bytes) -> None:
        """Add a member's masked words; WireError, naming it, if they are not what they must be.

        ReplyRefusedError if they come after :meth:`close`.
        """
        place = self._place(name)
        told = _decoded(name, data, self._message)
        if told["context"].tobytes() != self._context:
            raise WireError(f"'{name}' answered to something else than all were told.")
        digest = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        if self._digests[place].any():
            if not np.array_equal(self._digests[place], digest):
                raise WireError(f"'{name}' sent two different answers under the same masks.")
            return
        if self._cohort is not None:
            raise ReplyRefusedError(f"'{name}' came too late for this sum: it is closed.")
        add_words(self._running, told["words"])
        self._digests[place] = digest

    def close(self) -> None:
        """Fix who is in. Keep :meth:`state` before anybody is told.

        Raises QuorumError as :meth:`check`; nothing is closed then.
        """
        self.check()
        self._cohort = self._there

    def check(self) -> None:
        """Find out whether it can be closed.

        Raises QuorumError if those who are in are fewer than the floor or the quorum, or some have
        too few neighbours among them.
        """
        cohort, roll = self._there, self._roll
        if cohort.sum() < roll.least:
            raise QuorumError(
                f"{cohort.sum()} of {roll.size} clients are in a secure sum, at least {roll.least} "
                "must be: two thirds of those that sent keys, and `privacy.min_cohort`. Nothing "
                "was opened."
            )
        if not roll.is_joined(cohort):
            raise QuorumError(
                "A client in a secure sum has too few neighbours in it. Nothing was opened."
            )

    @property
    def closed(self) -> bool:
        """Whether who is in is fixed."""
        return self._cohort is not None

    @property
    def cohort(self) -> bytes:
        """The list of who is in, for members to sign; QuorumError before :meth:`close`."""
        return encode_arrays({"cohort": self._inside})

    def add_signature(self, name: str, data: bytes) -> None:
        """Take a member's signature on the list; WireError, naming it, if it is not that."""
        place = self._place(name)
        expected = {"signature": ArraySpec("uint8", (SIGNATURE,))}
        signature = _decoded(name, data, expected)["signature"]
        statement = self._roll.statement(self._members, self._key, self._name, self._inside)
        if not self._server.holds(name, signature.tobytes(), statement):
            raise WireError(f"'{name}' sent no signature of its own on this list of who is in.")
        self._signers[place], self._signatures[place] = 1, signature

    @property
    def signed(self) -> bool:
        """Whether enough members have signed."""
        return bool(self._signers.sum() >= self._roll.quorum)

    def unmask_request(self) -> bytes:
        """Return what members are asked for the opening; QuorumError if too few signed."""
        if not self.signed:
            raise QuorumError(
                f"{self._signers.sum()} of {self._roll.size} clients have signed who is in a "
                f"secure sum, {self._roll.quorum} must."
            )
        return encode_arrays(
            {
                "cohort": self._inside,
                "signers": self._signers,
                "signatures": self._signatures[self._signers > 0],
            }
        )

    def add_unmask(self, name: str, data: bytes) -> None:
        """Take a member's shares; WireError, naming it, if they have another form."""
        place = self._place(name)
        holders = self._given.shape[1]
        expected = {
            "given": ArraySpec("uint8", (holders,)),
            "shares": ArraySpec("uint8", (holders, KEY)),
        }
        told = _decoded(name, data, expected)
        if told["given"].max(initial=0) > 1:
            raise WireError(f"'{name}' must say 0 or 1 of each share.")
        if self._answered[place]:
            before = self._given[place], self._shares[place]
            if not all(map(np.array_equal, before, (told["given"], told["shares"]))):
                raise WireError(f"'{name}' gave two different sets of shares for one sum.")
            return
        self._answered[place] = 1
        self._given[place], self._shares[place] = told["given"], told["shares"]

    @property
    def answered(self) -> tuple[str, ...]:
        """Whose shares are in, sorted."""
        return listed(self._roll.names, self._answered)

    @property
    def ready(self) -> bool:
        """Whether enough members have answered for :meth:`total`."""
        return self.closed and not self._short()

    def total(self) -> NDArray[Any]:
        """Return the sum of the words of all who are in, of their :attr:`WordSpec.spec`.

        Raises QuorumError if too few shares are there, or, of too many, they do not fit; says of
        whom. More answers can be added then.
        """
        inside = self._inside
        found = self._running.copy()
        for place, secret in self._opened().items():
            if inside[place]:
                info = self._roll.own_binding(self._key, place)
                add_stream(found, own_key(secret, info), subtract=True)
                continue
            private = private_key(secret)
            for other in self._roll.neighbours.holders[place].tolist():
                if inside[other]:
                    info = self._roll.pair_binding(self._key, self._context, place, other)
                    public = self._server.public_key(other, self._key)
                    # What the other one, which is in, added for the one that is not, goes.
                    add_stream(found, agreed_key(private, public, info), subtract=other < place)
        return found

    @property
    def misfits(self) -> tuple[tuple[str, str], ...]:
        """Shares that did not fit, or came from who gave such, and were left out, sorted.

        Of whose secret, and from whom: either may be to blame, who is in many of them is.
        """
        names = self._roll.names
        rows, columns = np.nonzero(self._misfits)
        holders = self._roll.neighbours.holders[rows, columns]
        return tuple((names[one], names[other]) for one, other in zip(rows, holders, strict=True))

    def state(self) -> State:
        """Return all of this sum as arrays; they share memory with it."""
        return {
            "running": self._running,
            "digests": self._digests,
            "closed": np.array([self.closed], np.uint8),
            "signers": self._signers,
            "signatures": self._signatures,
            "answered": self._answered,
            "given": self._given,
            "shares": self._shares,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from :meth:`state`; KeyError or ValueError if the arrays are not such."""
        for name, own in self.state().items():
            if arrays[name].dtype != own.dtype or arrays[name].shape != own.shape:
                raise ValueError(f"'{name}' is not that of such a sum")
        for name, own in self.state().items():
            own[...] = arrays[name]
        self._cohort = self._there if arrays["closed"][0] else None

    @property
    def _there(self) -> Bits:
        return np.asarray(self._digests.any(axis=1), np.uint8)

    @property
    def _inside(self) -> Bits:
        if self._cohort is None:
            raise QuorumError("who is in a secure sum is not fixed yet.")
        return self._cohort

    def _place(self, name: str) -> int:
        place = self._roll.places.get(name)
        if place is None or not self._members[place]:
            raise WireError(f"'{name}' is no member of this run's secure sums.")
        return place

    @property
    def _available(self) -> NDArray[np.bool_]:
        """Which shares of each one's secret are there and not known to be wrong, by column."""
        graph = self._roll.neighbours
        given: NDArray[np.bool_] = self._given[graph.holders, graph.columns] > 0
        return given & ~self._misfits

    def _short(self) -> list[int]:
        """Return the members of whose secrets there are too few shares."""
        few = self._available.sum(1) < self._roll.neighbours.threshold
        return np.flatnonzero(few & (self._members > 0)).tolist()

    def _opened(self) -> dict[int, bytes]:
        """Return what opens the sum: a self seed of who is in, a private key of who is not."""
        least = self._roll.neighbours.threshold
        short = self._short()
        if short:
            raise QuorumError(
                f"{len(self.answered)} clients have answered; for the secrets of "
                f"{self._named(short)} that is fewer than the {least} shares it takes."
            )
        dealers = np.flatnonzero(self._members)
        columns = np.argsort(~self._available[dealers], axis=1, kind="stable")[:, :least]
        found = dict(zip(dealers.tolist(), self._combined(dealers, columns), strict=True))
        wrong = [dealer for dealer, secret in found.items() if not self._fits(dealer, secret)]
        return found | {dealer: self._searched(dealer) for dealer in wrong}

    def _searched(self, dealer: int) -> bytes:
        """Return a secret that is as it was advertised, of shares some of which are wrong."""
        graph = self._roll.neighbours
        columns = np.flatnonzero(self._available[dealer]).tolist()
        known = set(graph.holders[self._misfits].tolist())
        suspects = [one for one in columns if graph.holders[dealer, one] in known]
        for out, rest in _left_out(columns, graph.threshold, suspects):
            (secret,) = self._combined(np.array([dealer]), np.array([rest]))
            if self._fits(dealer, secret):
                self._misfits[dealer, list(out)] = True
                return secret
        raise QuorumError(
            f"The shares of the secret of {self._named([dealer])} do not fit: it, or some of those "
            "that answered, sent wrong ones."
        )

    def _named(self, places: Sequence[int]) -> str:
        return listing([f"'{self._roll.names[place]}'" for place in places], 3)

    def _fits(self, dealer: int, secret: bytes) -> bool:
        kind = _SEED if self._inside[dealer] else _PRIVATE_KEY
        return self._server.checked_public(dealer, self._key, kind, secret)

    def _combined(self, dealers: NDArray[np.int64], columns: NDArray[np.int64]) -> list[bytes]:
        """Return the secrets that the shares in some columns give, a row of them a dealer."""
        graph, rows = self._roll.neighbours, dealers[:, None]
        shares = self._shares[graph.holders[rows, columns], graph.columns[rows, columns]]
        halves = shares.reshape(*columns.shape, -1, shamir.SECRET)
        return [one.tobytes() for one in shamir.combine(columns + 1, halves)]


def _left_out(
    columns: Sequence[int], least: int, suspects: Sequence[int]
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Yield who is left out, suspects and then the fewest first, and as many as it takes."""
    others = [one for one in columns if one not in suspects]
    if suspects and len(others) >= least:
        yield suspects, others[:least]
    tries = (
        (out, [one for one in columns if one not in out][:least])
        for count in range(1, len(columns) - least + 1)
        for out in itertools.combinations(columns[: least + count], count)
    )
    yield from itertools.islice(tries, _MOST_TRIES)


def _decoded(name: str, data: bytes, expected: Mapping[str, ArraySpec]) -> dict[str, NDArray[Any]]:
    try:
        return decode_arrays(data, expected)
    except WireError as error:
        raise WireError(f"'{name}' sent for a secure sum: {error}") from None


def _rows(parts: Sequence[bytes]) -> Bits:
    return np.stack([np.frombuffer(part, np.uint8) for part in parts])


def _stacked(parts: Sequence[Bits], *shape: int) -> Bits:
    return np.stack(parts) if parts else np.zeros((0, *shape), np.uint8)


def _names(array: NDArray[Any]) -> list[str]:
    return read_names(bytes(array).decode())
