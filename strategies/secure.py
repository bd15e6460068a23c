"""The server's part in secure sums: keys and shares before the rounds, an opening after each sum.

What is said stands in :mod:`fedprune.privacy`; here it becomes messages, and survives a kill.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import INFO, WARNING
from typing import Any, TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.logger import log

from fedprune.config import RunConfig
from fedprune.errors import QuorumError, ReplyRefusedError, WireError
from fedprune.methods.exchange import BlockExchange, BlockTask, Contributor
from fedprune.methods.masked import (
    MaskedAggregator,
    MaskedExchange,
    context_of,
    planned,
    sum_name,
    widths,
)
from fedprune.methods.public_model import PublicModel
from fedprune.methods.word_sums import part_of, prefixed
from fedprune.privacy.secure_server import MaskedSum, SecureServer
from fedprune.privacy.secure_sums import SumPlan, Unsigned, WordSpec
from fedprune.records import (
    Keys,
    KeysOrder,
    keys_request,
    parts_request,
    read_keys,
    read_parts,
)
from fedprune.seeds import derive_seed
from fedprune.wire.arrays import Arrays, array_names, encode_arrays
from strategies.cohort import Client
from strategies.messages import ExchangeClient
from strategies.progress import Report

T = TypeVar("T")

KEYS = "query.keys"
SHARES = "query.shares"
SIGN = "query.sign"
UNMASK = "query.unmask"

_KEY_BYTES = 64  # of a key of the plan: a public key and a commitment, or two shares
_BOX_BYTES = 1024  # beside the shares in what is for one reader
_MOST_NEIGHBOURS = 101
_OPENING_BYTES = 8192  # beside the shares in what opens a sum


def plan_sums(config: RunConfig, model: PublicModel, job: str, clients: int) -> SumPlan:
    """Return every sum that a run will ask for.

    Raises ConfigError if what is asked for are no sums of integers.
    """
    sums: dict[str, WordSpec] = {}
    for exchange in planned(config, model.num_blocks):
        numbers = range(1, config.strategy.rounds + 1) if exchange.prunes else range(1, 2)
        for number in numbers:
            masked = MaskedExchange(exchange, clients)
            for block in range(model.num_blocks):
                for bits, count in widths(masked.layout(model, block, number)).items():
                    sums[sum_name(exchange.name, number, block, bits)] = WordSpec(count, bits)
    return SumPlan(job, sums, config.privacy.min_cohort)


def cohorts_of(config: RunConfig, partitions: Sequence[int], least: int) -> list[list[int]]:
    """Return which clients are added up together, by partition.

    All of them where one sum will do, else as many cohorts of `privacy.min_cohort` or more as there
    can be. They follow from `seed` and the partitions: nobody chooses them, and another run over
    the same clients has the same. ``least`` is how many it takes; QuorumError if there are too few
    clients for so many.
    """
    size = config.privacy.min_cohort
    count = len(partitions) // size if least > 1 else 1
    if count < least:
        raise QuorumError(
            f"{len(partitions)} clients take part; {least} cohorts of `privacy.min_cohort` {size} "
            f"take {least * size}. Let more take part, or leave `strategy.pooling` out."
        )
    order = sorted(partitions, key=lambda one: derive_seed(config.seed, "cohorts", one))
    return [sorted(order[place::count]) for place in range(count)]


@dataclass
class SecureSums:
    """A run's secure sums, set up: one for all clients, or one for each of several cohorts."""

    servers: list[SecureServer]  # of each cohort: the server's half of the protocol
    cohorts: list[list[int]]  # partitions; one of which too few are left is left out
    least: int  # cohorts that there must be
    clients: int  # how many clients' words are added up at most
    # partition -> what the protocol calls its client
    names: dict[int, str] = field(default_factory=dict)
    # partition -> SHA-256 of the roster by which it trusts the others; "" if it trusts anybody
    rosters: dict[int, str] = field(default_factory=dict)

    @classmethod
    def set_up(
        cls,
        to: ExchangeClient,
        plan: SumPlan,
        cohorts: list[list[int]],
        least: int,
        model: PublicModel,
        report: Report,
    ) -> "SecureSums":
        """Gather keys, and the shares of their secrets that clients have for each other.

        `to`: how messages are sent; who does not answer, or wrongly, is left out. `plan`: what the
        run will ask for; where there are several `cohorts` each has its own, named by its number.
        Raises QuorumError if too few have answered, in so many cohorts that fewer than ``least``
        are left.
        """
        asked, count = to.cohort.active, len(cohorts)
        plans = [plan]
        if count > 1:
            names = (f"{plan.run}/cohort {place + 1} of {count}" for place in range(count))
            plans = [replace(plan, run=name) for name in names]
        servers = [SecureServer(one, Unsigned()) for one in plans]
        found = cls(servers, cohorts, least, len(asked))
        contents = [
            keys_request(to.config_yaml, KeysOrder(one.to_bytes(), len(asked), model.inputs))
            for one in plans
        ]
        most = _KEY_BYTES * (plan.keys + 1)
        sent: dict[Client, Keys] = {}

        def keys(client: Client) -> RecordDict:
            return contents[found._cohort_of(client)]

        _ask(to, KEYS, keys, most, lambda c, reply: found._read(c, reply, sent), report)
        for client, advert in found._trusting(to, sent).items():
            found._server_of(client).add_advert(found.names[client.partition], advert)
        left = found._each(to, range(count), lambda place: servers[place].close_adverts())

        def adverts(client: Client) -> RecordDict:
            told = found._server_of(client).adverts_for(found.names[client.partition])
            return parts_request(to.config_yaml, {"adverts": told})

        def take(client: Client, reply: Message) -> None:
            shares = read_parts(reply, ["shares"])["shares"]
            found._server_of(client).add_shares(found.names[client.partition], shares)

        most = found._neighbours * (_KEY_BYTES * plan.keys + _BOX_BYTES)
        _ask(to, SHARES, adverts, most, take, report)
        left = found._each(to, left, lambda place: servers[place].close_shares())
        found.servers = [servers[place] for place in left]
        found.cohorts = [cohorts[place] for place in left]
        found._tell()
        return found

    @property
    def authenticated(self) -> bool:
        """Whether all clients trust each other by one roster, and nobody else."""
        return len(set(self.rosters.values())) == 1 and all(self.rosters.values())

    def figures(self) -> dict[str, Any]:
        """Return what the results tell of it."""
        plan = self.servers[0].plan
        return {
            "clients": sum(len(server.members) for server in self.servers),
            "cohorts": len(self.servers),
            "threshold": max(server.quorum for server in self.servers),
            "min_cohort": plan.floor,
            "sums": len(plan.sums),
            "authenticated": self.authenticated,
        }

    def shares_for(self, partition: int) -> bytes:
        """Return the shares of the others' secrets for a client."""
        place = next(n for n, cohort in enumerate(self.cohorts) if partition in cohort)
        return self.servers[place].boxes_for(self.names[partition])

    def masked(
        self, exchange: BlockExchange, task: BlockTask, clients: Iterable[Client], heard: str
    ) -> MaskedAggregator[Any]:
        """Return empty sums of clients' masked words of a block, of which they heard as told."""
        context = context_of(exchange.config, task.model.weights_hash, heard)
        layout = MaskedExchange(exchange, self.clients).layout(task.model, task.block, task.round)
        names = [sum_name(exchange.name, task.round, task.block, bits) for bits in widths(layout)]
        inside = {one for cohort in self.cohorts for one in cohort}
        return MaskedAggregator(
            exchange.aggregator(task),
            layout,
            [{name: one.sum(name, context=context) for name in names} for one in self.servers],
            {
                client.name: (self._cohort_of(client), self.names.get(client.partition, ""))
                for client in clients
                if client.partition in inside
            },
        )

    def open(
        self,
        to: ExchangeClient,
        aggregators: Iterable[MaskedAggregator[Any]],
        contributor: Callable[[Client], Contributor],
        keep: Callable[[], None],
        report: Report,
    ) -> list[Client]:
        """Open the sums of some blocks, and hand them on; return whose they are.

        `aggregators`: the blocks, all of which the same clients have answered. `contributor`: a
        client as its sums are checked by it. `keep`: puts the sums on the disk: before anybody is
        told who is in them. Raises QuorumError if too few clients are in the sums, sign the list of
        them or answer; nothing is opened. Raises WireError if such clients' answers cannot come to
        such sums. Of several cohorts one of which that is true is left out, as long as enough are
        left.
        """
        blocks = list(aggregators)
        sums = [
            {name: one for block in blocks for name, one in block.sums[place].items()}
            for place in range(len(self.servers))
        ]
        if not sums[0]:
            return to.cohort.active
        try:
            left = self._each(
                to, range(len(sums)), lambda place: _all(sums[place], MaskedSum.check)
            )
            for place in left:
                _all(sums[place], MaskedSum.close)
        finally:
            keep()
        lists = {place: {n: s.cohort for n, s in sums[place].items()} for place in left}
        self._exchange(to, SIGN, sums, lists, report)
        asked = self._each(to, left, lambda place: _all(sums[place], MaskedSum.unmask_request))
        self._exchange(to, UNMASK, sums, asked, report)

        def hand_on(place: int) -> list[Client]:
            inside = set(next(iter(sums[place].values())).arrived)
            own = [c for c in to.cohort.clients if c.partition in self.cohorts[place]]
            clients = [client for client in own if self.names.get(client.partition) in inside]
            for block in blocks:
                block.open(place, [contributor(client) for client in clients])
            return clients

        whose = self._each(to, asked, hand_on)
        misfits = {pair for own in sums for one in own.values() for pair in one.misfits}
        for dealer, holder in sorted(misfits):
            text = "a share of the secrets of '%s' that '%s' gave does not fit and was left out"
            log(WARNING, text, dealer, holder)
        return [client for clients in whose.values() for client in clients]

    def _exchange(
        self,
        to: ExchangeClient,
        kind: str,
        sums: Sequence[Mapping[str, MaskedSum]],
        asked: Mapping[int, Mapping[str, bytes]],
        report: Report,
    ) -> None:
        """Ask every client about its cohort's sums, and give each sum what it gets."""
        contents = {place: parts_request(to.config_yaml, one) for place, one in asked.items()}

        def take(client: Client, reply: Message) -> None:
            own, name = sums[self._cohort_of(client)], self.names[client.partition]
            for which, data in read_parts(reply, list(own)).items():
                if kind == SIGN:
                    own[which].add_signature(name, data)
                else:
                    own[which].add_unmask(name, data)

        most = len(sums[0]) * (_OPENING_BYTES + self._neighbours * _KEY_BYTES)
        _ask(to, kind, lambda client: contents[self._cohort_of(client)], most, take, report)

    def _each(
        self, to: ExchangeClient, places: Iterable[int], do: Callable[[int], T]
    ) -> dict[int, T]:
        """Do something with every cohort, and leave out those of which too few are left.

        QuorumError if too few cohorts are left then; the error itself where there is but one.
        """
        done: dict[int, T] = {}
        for place in places:
            try:
                done[place] = do(place)
            except (QuorumError, WireError) as error:
                if self.least == 1:
                    raise
                problem = f"cohort {place + 1} is left out: {error}"
                own = [one for one in to.cohort.active if one.partition in self.cohorts[place]]
                for client in own:  # none where it was left out before
                    to.cohort.refuse(client, to.step, "cohort", problem)
                    to.cohort.leave_out(client)
        if len(done) < self.least:
            raise QuorumError(
                f"{len(done)} cohorts are left, of which the median of at least {self.least} was "
                "to be taken. Nothing more is opened. Let more clients take part, or lower "
                f"`privacy.min_cohort`. Latest refusals: {to.cohort.ledger.reasons()}"
            )
        return done

    def _cohort_of(self, client: Client) -> int:
        found = (n for n, cohort in enumerate(self.cohorts) if client.partition in cohort)
        return next(found)

    def _server_of(self, client: Client) -> SecureServer:
        return self.servers[self._cohort_of(client)]

    @property
    def _neighbours(self) -> int:
        most = max(len(server.participants) for server in self.servers)
        return min(most, _MOST_NEIGHBOURS)

    def _read(self, client: Client, reply: Message, sent: dict[Client, Keys]) -> None:
        """Take a client's keys, if they are such and its name is its own."""
        keys, partition = read_keys(reply), client.partition
        name = keys.name if keys.roster else f"partition {partition}"
        if keys.name != name or name in self.names.values():
            raise ReplyRefusedError(
                f"it is called '{keys.name}' in secure sums, as another client is, or as it cannot "
                "be. With a roster each site takes part with one node."
            )
        plan = self._server_of(client).plan
        SecureServer(plan, Unsigned()).add_advert(name, keys.advert)  # for its checks
        self.names[partition], sent[client] = name, keys

    def _trusting(self, to: ExchangeClient, sent: Mapping[Client, Keys]) -> dict[Client, bytes]:
        """Return the keys of clients that trust each other; others could only stop them.

        Where some have a roster, these are the ones with the roster that most have.
        """
        rosters = Counter(keys.roster for keys in sent.values() if keys.roster)
        common = min(rosters, key=lambda one: (-rosters[one], one), default="")
        found = {}
        for client, keys in sent.items():
            if keys.roster == common:
                found[client], self.rosters[client.partition] = keys.advert, common
                continue
            what = "another `roster`" if keys.roster else "no `roster`"
            problem = f"it has {what} in its --node-config; others trust the roster {common[:16]}."
            to.cohort.refuse(client, to.step, "keys", problem)
            to.cohort.leave_out(client)
            del self.names[client.partition]
        return found

    def _tell(self) -> None:
        for place, server in enumerate(self.servers):
            which = f"cohort {place + 1} of " if len(self.servers) > 1 else ""
            text = "secure sums: %s%d clients, opened by %d or more, over %d or more"
            log(INFO, text, which, len(server.members), server.quorum, server.roll.least)
        if not self.authenticated:
            log(
                WARNING,
                "secure sums without a roster that all clients share: they hold against a server "
                "that follows the protocol and is curious, not against one that makes up clients. "
                "Name a `roster` in every node's --node-config (docs/secure_sums.md).",
            )

    def to_bytes(self) -> bytes:
        """Return all that another process needs to go on."""
        told = {
            "clients": self.clients,
            "least": self.least,
            "cohorts": self.cohorts,
            "names": [[number, name] for number, name in self.names.items()],
            "rosters": [[number, one] for number, one in self.rosters.items()],
        }
        parts = {f"{place}": server.state() for place, server in enumerate(self.servers)}
        plans = {
            f"plan/{place}": np.frombuffer(server.plan.to_bytes(), np.uint8)
            for place, server in enumerate(self.servers)
        }
        text = np.frombuffer(json.dumps(told).encode(), np.uint8)
        return encode_arrays({"told": text, **plans, **prefixed(parts)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "SecureSums":
        """Undo :meth:`to_bytes`; ValueError, KeyError or WireError if that made something else."""
        message = Arrays(data, array_names(data))
        arrays = {name: message.take(name, message.announced(name)) for name in message.names}
        told = json.loads(arrays.pop("told").tobytes())
        servers = []
        for place in range(len(told["cohorts"])):
            plan = SumPlan.from_bytes(arrays.pop(f"plan/{place}").tobytes())
            server = SecureServer(plan, Unsigned())
            server.restore(part_of(arrays, str(place)))
            servers.append(server)
        names, rosters = dict(told["names"]), dict(told["rosters"])
        return cls(servers, told["cohorts"], told["least"], told["clients"], names, rosters)


def _all(sums: Mapping[str, MaskedSum], do: Callable[[MaskedSum], T]) -> dict[str, T]:
    return {name: do(one) for name, one in sums.items()}


def _ask(
    to: ExchangeClient,
    kind: str,
    content: Callable[[Client], RecordDict],
    most: int,
    take: Callable[[Client, Message], None],
    report: Report,
) -> None:
    """Ask all clients of a run; one that answers wrongly is left out."""
    phase = kind.partition(".")[2]
    messages = (to.message(one.node_id, kind, content(one)) for one in to.cohort.active)
    for reply in to.replies(messages, phase, report, most_bytes=most):
        client = to.cohort.sender(reply)
        if client is None:
            continue
        try:
            take(client, reply)
        except (ReplyRefusedError, WireError) as error:
            to.cohort.refuse(client, to.step, phase, str(error))
            to.cohort.leave_out(client)
        else:
            to.cohort.ledger.add(to.cohort.entry(client, to.step, phase))
