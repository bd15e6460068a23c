"""A client's half of secure sums: masks for its words, shares for its neighbours, and refusals."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.disk import read_if_there, replace_file
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.privacy import shamir
from fedprune.privacy.secure_masks import (
    SEALED,
    add_stream,
    agreed_key,
    new_secret,
    opened,
    own_key,
    private_key,
    public_key,
    sealed,
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
    take_bits,
)
from fedprune.privacy.secure_sums import (
    KEY,
    LEAST_COHORT,
    MOST_CLIENTS,
    SIGNATURE,
    Signer,
    SumPlan,
    Verifier,
    bound,
    read_names,
    take_text,
)
from fedprune.wire.arrays import Arrays, ArraySpec, decode_arrays, encode_arrays

_PRIVATE = 0o600
_ADVERTS = ("names", "digests", "signatures", "channels", "keys", "commitments")
_NOBODY = bytes(KEY)  # stands for a hash that is not there
_TELLING = 32  # fewer words that two sums have in common are counts that come with every answer


class SecureClient:
    """What a client says, and what it refuses to say, in one run.

    Everything that it must not forget is in a folder before its answer leaves: a process that dies
    goes on with a new object on the same folder, gives the same answers and refuses the same. Two
    processes must not use a folder at once, and a folder must not be put back to an earlier state.

    `folder`: made on first use, for its owner's eyes only; holds secrets until it is removed.
    `floor`: the fewest clients this one will be summed with, itself included, whatever the plan
    says. Raises ReplyRefusedError if the plan's floor is below this client's, or the folder is that
    of another plan or name.
    """

    def __init__(
        self,
        plan: SumPlan,
        name: str,
        signer: Signer,
        roster: Verifier,
        folder: Path,
        floor: int = LEAST_COHORT,
    ) -> None:
        if plan.floor < floor:
            raise ReplyRefusedError(
                f"this node takes part in sums over at least {floor} clients, the server plans "
                f"sums over {plan.floor} or more. Raise `privacy.min_cohort`."
            )
        self._plan, self._name, self._signer, self._roster = plan, name, signer, roster
        self._disk = _Disk(folder, hashlib.sha256(bound("owner", plan.digest, name.encode())))
        self._disk.check()

    def advertise(self) -> bytes:
        """Make this run's keys and return the public ones, signed; the same bytes ever after."""
        if not self._disk.has_keys:
            self._disk.make(self._plan.keys)
        own = self._secrets
        return encode_arrays(
            {
                "channel": _array(own.public_channel),
                "keys": own.public_keys,
                "commitments": own.commitments,
                "signature": _array(self._signed_advert()),
            }
        )

    def shares(self, adverts: bytes) -> bytes:
        """Return encrypted shares of this client's secrets for its neighbours.

        `adverts`: of :meth:`SecureServer.adverts_for`. They are for
        :meth:`SecureServer.add_shares`, the same bytes for the same adverts. Raises WireError if
        the adverts are malformed or damaged. Raises ReplyRefusedError if one is not signed by a
        site of the roster, they are fewer than the floor, this client's own is not there as it was
        sent, or they are others than those before.
        """
        kept = self._disk.read("shares.bin")
        if kept is not None:
            told, boxes, _ = _kept_shares(kept, self._plan.keys)
            if told != adverts:
                raise ReplyRefusedError(
                    "this node shared its secrets with other participants, or other keys of "
                    "theirs, before; it does so once in a run."
                )
            return boxes
        peers = self._read_adverts(adverts)
        roll = peers.roll
        secrets = np.stack([self._secrets.seeds, self._secrets.private_keys], axis=1)
        graph = roll.neighbours
        holders = graph.holders[peers.own]
        parts = shamir.split(secrets.reshape(-1, shamir.SECRET), graph.threshold, len(holders))
        parts = parts.reshape(len(holders), -1)
        sent, channel = [], private_key(self._secrets.channel)
        for holder, part in zip(holders.tolist(), parts, strict=True):
            if holder != peers.own:
                info = roll.box_binding(peers.own, holder)
                key = agreed_key(channel, peers.channel(holder), info)
                sent.append(_array(sealed(key, part.tobytes(), info)))
        boxes = encode_arrays({"boxes": np.stack(sent)})
        own = parts[graph.column(peers.own, peers.own)]
        kept = encode_arrays({"adverts": _array(adverts), "boxes": _array(boxes), "own": own})
        self._disk.write("shares.bin", kept)
        return boxes

    def receive(self, boxes: bytes) -> tuple[str, ...]:
        """Take the shares of the neighbours' secrets; set-up is done then.

        `boxes`: of :meth:`SecureServer.boxes_for`; taking the same again changes nothing. Returns
        neighbours whose shares cannot be opened: whose fault that is cannot be seen from here.
        Raises WireError if they are malformed or damaged. Raises ReplyRefusedError if they leave
        fewer members than floor or quorum, this client is none of them, or they are others than
        those before.
        """
        kept = self._disk.read("boxes.bin")
        if kept is not None and kept != boxes:
            raise ReplyRefusedError(
                "this node was told of other members, or got other shares of theirs, before; it "
                "takes them once in a run."
            )
        found = self._read_boxes(boxes)
        if kept is None:
            self._disk.write("boxes.bin", boxes)
        self._held = found
        return tuple(self._peers.roll.names[dealer] for dealer in found.damaged)

    def masked(self, sum_name: str, words: NDArray[Any], context: bytes = b"") -> bytes:
        """Return this client's words under its masks, for :meth:`MaskedSum.add`.

        `words`: of the sum's :attr:`WordSpec.spec`. `context`: all that the server told this client
        and that its words depend on. Between clients that were told different things masks do not
        cancel. Raises WireError if the words are others than planned. Raises ReplyRefusedError if
        other words went out under the same masks, or this client has signed the list of who is in
        the sum already.
        """
        key, said = self._asked(sum_name)
        spec = self._plan.words(sum_name).spec
        if str(ArraySpec(words.dtype.name, words.shape)) != str(spec):
            raise WireError(
                f"the words of a secure sum must be {spec}, got {words.dtype} of shape "
                f"{words.shape}."
            )
        hidden = np.array(words, words.dtype.newbyteorder("="), order="C")
        telling = hashlib.sha256(hidden.data).digest() if words.size >= _TELLING else _NOBODY
        told = context_digest(context)
        for stream, subtract in self._streams(key, told):
            add_stream(hidden, stream, subtract=subtract)
        data = encode_arrays({"words": hidden, "context": _array(told)})
        digest = hashlib.sha256(data).digest()
        before = said.masked[key].tobytes()
        if before == digest:
            return data
        if before != _NOBODY:
            raise ReplyRefusedError(
                "this node has sent other words under the masks of this sum; two under one would "
                "tell their difference."
            )
        if said.cohorts[key].any():
            raise ReplyRefusedError("this node has signed who is in this sum: it is closed.")
        said.masked[key], said.words[key] = _array(digest), _array(telling)
        self._disk.write("said.bin", said.to_bytes())
        return data

    def sign(self, sum_name: str, cohort: bytes) -> bytes:
        """Return this client's signature on who is in a sum, for :meth:`MaskedSum.add_signature`.

        `cohort`: of :attr:`MaskedSum.cohort`. Raises WireError if the list is malformed. Raises
        ReplyRefusedError if it has fewer than the floor or the quorum, has this client in it though
        it sent nothing, or is another than one signed before for the same sum, or for another to
        which this client sent the same words.
        """
        key, said = self._asked(sum_name)
        arrays = Arrays(cohort, ("cohort",))
        inside = take_bits(arrays, "cohort", self._peers.roll.size)
        arrays.finish()
        self._agree(key, said, inside)
        return encode_arrays({"signature": _array(self._signature(key, sum_name, inside))})

    def unmask(self, sum_name: str, request: bytes) -> bytes:
        """Return shares that open the sum: of the self seed of who is in, of the key of who is not.

        For :meth:`MaskedSum.add_unmask`. `request`: of :meth:`MaskedSum.unmask_request`: the list
        and the signatures on it. Raises WireError if it is malformed. Raises ReplyRefusedError as
        :meth:`sign`, and if fewer than the quorum signed this very list, this client's own consent
        counted.
        """
        key, said = self._asked(sum_name)
        roll, held = self._peers.roll, self._held
        arrays = Arrays(request, ("cohort", "signers", "signatures"))
        inside = take_bits(arrays, "cohort", roll.size)
        signers = take_bits(arrays, "signers", roll.size) & held.members
        shape = (int(signers.sum()), SIGNATURE)
        signatures = arrays.take("signatures", ArraySpec("uint8", shape))
        arrays.finish()
        statement = roll.statement(held.members, key, sum_name, inside)
        agreeing = {self._name}
        for name, signature in zip(listed(roll.names, signers), signatures, strict=True):
            if self._holds(name, signature.tobytes(), statement, COHORT):
                agreeing.add(name)
        if len(agreeing) < roll.quorum:
            raise ReplyRefusedError(
                f"of the {roll.size} participants {roll.quorum} must have signed the same list of "
                f"who is in a sum, these are {len(agreeing)}: the others may have been shown "
                "another list."
            )
        self._agree(key, said, inside)
        holders = roll.neighbours.holders[self._peers.own]
        told = np.zeros((len(holders), KEY), np.uint8)
        for place, dealer in enumerate(holders.tolist()):
            if held.given[place]:
                told[place] = held.shares[place, key, 0 if inside[dealer] else 1]
        return encode_arrays({"given": held.given, "shares": told})

    def _asked(self, sum_name: str) -> tuple[int, "_Said"]:
        """Return a sum's key, and what was said."""
        key = self._plan.key_of(sum_name)
        return key, _Said.read(self._disk.needed("said.bin"), self._plan.keys)

    def _agree(self, key: int, said: "_Said", cohort: Bits) -> None:
        """Consent to a list, for good, or refuse."""
        roll, members = self._peers.roll, self._held.members
        count = int(cohort.sum())
        if count < roll.least:
            raise ReplyRefusedError(
                f"a sum over {count} clients was asked for; of {roll.size} participants at least "
                f"{roll.least} must be in it."
            )
        if (cohort > members).any():
            raise ReplyRefusedError("a sum has clients in it that are none of the run's members.")
        if not roll.is_joined(cohort):
            raise ReplyRefusedError("a client in the sum has too few neighbours in it.")
        if cohort[self._peers.own] and not said.masked[key].any():
            raise ReplyRefusedError("this node is said to be in a sum for which it sent nothing.")
        digest = _array(hashlib.sha256(bound("cohort", cohort.tobytes())).digest())
        same = said.words[key].any() & (said.words == said.words[key]).all(axis=1)
        same[key] = True
        agreed = said.cohorts[same & said.cohorts.any(axis=1)]
        if (agreed != digest).any():
            raise ReplyRefusedError(
                "this node has agreed to another list of who is in this sum, or in one of the same "
                "words; two sums over different clients would tell who makes the difference."
            )
        if not said.cohorts[key].any():
            said.cohorts[key] = digest
            self._disk.write("said.bin", said.to_bytes())

    def _signature(self, key: int, sum_name: str, cohort: Bits) -> bytes:
        statement = self._peers.roll.statement(self._held.members, key, sum_name, cohort)
        return self._signer.sign(statement, purpose=COHORT, run=self._plan.run)

    def _holds(self, name: str, signature: bytes, data: bytes, purpose: str) -> bool:
        return self._roster.holds(name, signature, data, purpose=purpose, run=self._plan.run)

    def _streams(self, key: int, context: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield the keys of all masks on this client's words, and whether they are taken off."""
        peers, roll, own = self._peers, self._peers.roll, self._peers.own
        private = private_key(self._secrets.private_keys[key].tobytes())
        yield own_key(self._secrets.seeds[key].tobytes(), roll.own_binding(key, own)), False
        for other in peers.others:
            if self._held.members[other]:
                info = roll.pair_binding(key, context, own, other)
                try:
                    stream = agreed_key(private, peers.public_key(other, key), info)
                except WireError as error:
                    name = roll.names[other]
                    raise ReplyRefusedError(f"of the keys of '{name}' {error}") from None
                yield stream, other < own

    def _signed_advert(self) -> bytes:
        statement = advert_statement(self._plan, self._secrets.digest)
        return self._signer.sign(statement, purpose=ADVERT, run=self._plan.run)

    @cached_property
    def _secrets(self) -> "_Secrets":
        arrays = self._disk.keys(self._plan.keys)
        return _Secrets(arrays["channel"].tobytes(), arrays["private"], arrays["seeds"])

    @cached_property
    def _peers(self) -> "_Peers":
        adverts, _, _ = _kept_shares(self._disk.needed("shares.bin"), self._plan.keys)
        return self._read_adverts(adverts)

    @cached_property
    def _held(self) -> "_Held":
        return self._read_boxes(self._disk.needed("boxes.bin"))

    def _read_adverts(self, data: bytes) -> "_Peers":
        """Return the participants, all of whom the roster knows; raise as :meth:`shares`."""
        arrays = Arrays(data, _ADVERTS)
        names = read_names(take_text(arrays, "names"))
        if names != sorted(names) or len(names) > MOST_CLIENTS:
            raise WireError(f"participants must be sorted, {MOST_CLIENTS} at most.")
        if len(names) < self._plan.floor or self._name not in names:
            raise ReplyRefusedError(
                f"{len(names)} clients take part, expected {self._plan.floor} or more and this "
                "node among them."
            )
        digests = arrays.take("digests", ArraySpec("uint8", (len(names), KEY)))
        signatures = arrays.take("signatures", ArraySpec("uint8", (len(names), SIGNATURE)))
        for name, digest, signature in zip(names, digests, signatures, strict=True):
            statement = advert_statement(self._plan, digest.tobytes())
            if not self._holds(name, signature.tobytes(), statement, ADVERT):
                raise ReplyRefusedError(
                    f"the keys of '{name}' are not signed, for this plan, by a site of this "
                    "node's roster."
                )
        roll = Roll(self._plan, tuple(names), tuple(digest.tobytes() for digest in digests))
        own = roll.places[self._name]
        if roll.digests[own] != self._secrets.digest:
            raise ReplyRefusedError("this node's own keys are not told to others as it sent them.")
        others = [one for one in roll.neighbours.holders[own].tolist() if one != own]
        channels = arrays.take("channels", ArraySpec("uint8", (len(others), KEY)))
        keys = arrays.take("keys", ArraySpec("uint8", (len(others), self._plan.keys, KEY)))
        commitments = arrays.take("commitments", ArraySpec("uint8", (len(others), KEY)))
        arrays.finish()
        for place, other in enumerate(others):
            told = channels[place].tobytes(), keys[place], commitments[place].tobytes()
            if advert_digest(*told) != roll.digests[other]:
                raise ReplyRefusedError(f"the keys of '{names[other]}' are not those it signed.")
        return _Peers(roll, own, others, channels, keys)

    def _read_boxes(self, data: bytes) -> "_Held":
        """Return the neighbours' shares that this client holds; raise as :meth:`receive`."""
        peers, roll, own = self._peers, self._peers.roll, self._peers.own
        size = self._plan.keys * 2 * KEY
        arrays = Arrays(data, ("members", "boxes"))
        members = take_bits(arrays, "members", roll.size)
        boxes = arrays.take("boxes", ArraySpec("uint8", (len(peers.others), size + SEALED)))
        arrays.finish()
        if members.sum() < roll.least or not members[own]:
            raise ReplyRefusedError(
                f"{members.sum()} clients shared their secrets, expected {roll.least} or more of "
                f"{roll.size} and this node among them."
            )
        _, _, own_shares = _kept_shares(self._disk.needed("shares.bin"), self._plan.keys)
        holders = roll.neighbours.holders[own]
        shares = np.zeros((len(holders), size), np.uint8)
        given = np.zeros(len(holders), np.uint8)
        place = roll.neighbours.column(own, own)
        shares[place], given[place] = own_shares, 1
        damaged, channel = [], private_key(self._secrets.channel)
        for other, box in zip(peers.others, boxes, strict=True):
            if members[other]:
                info = roll.box_binding(other, own)
                key = agreed_key(channel, peers.channel(other), info)
                plain = opened(key, box.tobytes(), info)
                if plain is None:
                    damaged.append(other)
                    continue
                place = roll.neighbours.column(own, other)
                shares[place], given[place] = _array(plain), 1
        return _Held(members, given, shares.reshape(-1, self._plan.keys, 2, KEY), tuple(damaged))


@dataclass(frozen=True)
class _Secrets:
    """A client's own secrets, by key of the plan."""

    channel: bytes
    private_keys: Bits  # (keys, 32)
    seeds: Bits  # (keys, 32)

    @property
    def public_channel(self) -> bytes:
        return public_key(self.channel)

    @cached_property
    def public_keys(self) -> Bits:
        return np.stack([_array(public_key(one.tobytes())) for one in self.private_keys])

    @property
    def commitments(self) -> Bits:
        return np.stack([_array(commitment(one.tobytes())) for one in self.seeds])

    @cached_property
    def digest(self) -> bytes:
        told = commitments_digest(self.commitments)
        return advert_digest(self.public_channel, self.public_keys, told)


@dataclass(frozen=True)
class _Peers:
    """The participants, and the neighbours' public keys."""

    roll: Roll
    own: int
    others: list[int]  # neighbours
    channels: Bits  # (neighbours, 32)
    keys: Bits  # (neighbours, keys, 32)

    def channel(self, other: int) -> bytes:
        return bytes(self.channels[self.others.index(other)])

    def public_key(self, other: int, key: int) -> bytes:
        return bytes(self.keys[self.others.index(other), key])


@dataclass(frozen=True)
class _Held:
    """Who the members are, and the shares of their secrets that this client holds."""

    members: Bits
    given: Bits  # (holders,): whose shares are there
    shares: Bits  # (holders, keys, 2, 32): of the self seed, of the private key
    damaged: tuple[int, ...]


@dataclass(frozen=True)
class _Said:
    """What must not be said otherwise a second time, by key of the plan."""

    masked: Bits  # (keys, 32): SHA-256 of what was sent, zeros for nothing
    cohorts: Bits  # (keys, 32): SHA-256 of the list agreed to
    words: Bits  # (keys, 32): SHA-256 of what was sent, without its masks

    @classmethod
    def nothing(cls, keys: int) -> "_Said":
        empty = np.zeros((keys, KEY), np.uint8)
        return cls(empty, empty.copy(), empty.copy())

    @classmethod
    def read(cls, data: bytes, keys: int) -> "_Said":
        hashes = ArraySpec("uint8", (keys, KEY))
        expected = dict.fromkeys(("masked", "cohorts", "words"), hashes)
        return cls(**{name: array.copy() for name, array in decode_arrays(data, expected).items()})

    def to_bytes(self) -> bytes:
        return encode_arrays(vars(self))


class _Disk:
    """The files of a client's folder, each whole or absent."""

    def __init__(self, folder: Path, owner: "hashlib._Hash") -> None:
        self._folder, self._owner = folder, owner.digest()

    @property
    def has_keys(self) -> bool:
        return (self._folder / "keys.bin").exists()

    def check(self) -> None:
        """Refuse a folder of another plan or client, or one that has forgotten what was said."""
        if self.has_keys:
            owner = Arrays(self.needed("keys.bin"), ("owner", "channel", "private", "seeds"))
            if owner.take("owner", ArraySpec("uint8", (KEY,))).tobytes() != self._owner:
                raise ReplyRefusedError(
                    "this node's keys for the run's secure sums are those of another plan."
                )
            self.needed("said.bin")

    def make(self, keys: int) -> None:
        """Draw all secrets; what has been said is there before them, so that it is never lost."""
        self.write("said.bin", _Said.nothing(keys).to_bytes())
        drawn = np.stack([_array(new_secret()) for _ in range(2 * keys + 1)])
        arrays = {
            "owner": _array(self._owner),
            "channel": drawn[-1],
            "private": drawn[:keys],
            "seeds": drawn[keys:-1],
        }
        self.write("keys.bin", encode_arrays(arrays))

    def keys(self, keys: int) -> Mapping[str, Bits]:
        one, many = ArraySpec("uint8", (KEY,)), ArraySpec("uint8", (keys, KEY))
        expected = {"owner": one, "channel": one, "private": many, "seeds": many}
        return decode_arrays(self.needed("keys.bin"), expected)

    def read(self, name: str) -> bytes | None:
        return read_if_there(self._folder / name)

    def needed(self, name: str) -> bytes:
        found = self.read(name)
        if found is None:
            raise ReplyRefusedError(
                "this node has not been through the set-up of the run's secure sums, or its folder "
                "was emptied."
            )
        return found

    def write(self, name: str, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._folder / name, data, mode=_PRIVATE)


def _kept_shares(data: bytes, keys: int) -> tuple[bytes, bytes, Bits]:
    """Return the adverts, the answer to them, and the own shares of what :meth:`shares` kept."""
    arrays = Arrays(data, ("adverts", "boxes", "own"))
    adverts, boxes = (arrays.take(name, arrays.announced(name)) for name in ("adverts", "boxes"))
    own = arrays.take("own", ArraySpec("uint8", (keys * 2 * KEY,)))
    return adverts.tobytes(), boxes.tobytes(), own


def _array(data: bytes) -> Bits:
    return np.frombuffer(data, np.uint8)
