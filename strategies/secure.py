"""The server's part in secure sums: keys and shares before the rounds, an opening after each sum.

What is said stands in :mod:`fedprune.privacy`; here it becomes messages, and survives a kill.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.logger import log

from fedprune.config import RunConfig
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.flower.replies import SHORT_REPLY_BYTES
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
from fedprune.wire.arrays import Arrays, array_names, encode_arrays
from strategies.cohort import Client
from strategies.exchange import Outcome
from strategies.messages import ExchangeClient
from strategies.progress import Report

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


@dataclass
class SecureSums:
    """A run's secure sums, set up."""

    server: SecureServer  # the server's half of the protocol
    clients: int  # how many clients' words are added up at most
    # partition -> what the protocol calls its client
    names: dict[int, str] = field(default_factory=dict)
    # partition -> SHA-256 of the roster by which it trusts the others; "" if it trusts anybody
    rosters: dict[int, str] = field(default_factory=dict)

    @classmethod
    def set_up(
        cls, to: ExchangeClient, plan: SumPlan, model: PublicModel, report: Report
    ) -> "SecureSums":
        """Gather keys, and the shares of their secrets that clients have for each other.

        `to`: how messages are sent; who does not answer, or wrongly, is left out. `model`: which
        linears share an input. Raises QuorumError if too few have answered.
        """
        asked = to.cohort.active
        found = cls(SecureServer(plan, Unsigned()), len(asked))
        server, keys = found.server, plan.keys
        order = KeysOrder(plan.to_bytes(), len(asked), model.inputs)
        content = keys_request(to.config_yaml, order)
        most = _KEY_BYTES * (keys + 1)
        sent: dict[Client, Keys] = {}
        _ask(
            to, KEYS, lambda _: content, most, lambda c, reply: found._read(c, reply, sent), report
        )
        for client, advert in found._trusting(to, sent).items():
            server.add_advert(found.names[client.partition], advert)
        server.close_adverts()

        def adverts(client: Client) -> Any:
            told = server.adverts_for(found.names[client.partition])
            return parts_request(to.config_yaml, {"adverts": told})

        def take(client: Client, reply: Message) -> None:
            shares = read_parts(reply, ["shares"])["shares"]
            server.add_shares(found.names[client.partition], shares)

        neighbours = min(len(server.participants), _MOST_NEIGHBOURS)
        most = neighbours * (_KEY_BYTES * keys + _BOX_BYTES)
        _ask(to, SHARES, adverts, most, take, report)
        server.close_shares()
        found._tell()
        return found

    @property
    def authenticated(self) -> bool:
        """Whether all clients trust each other by one roster, and nobody else."""
        return len(set(self.rosters.values())) == 1 and all(self.rosters.values())

    def figures(self) -> dict[str, Any]:
        """Return what the results tell of it."""
        server = self.server
        return {
            "clients": len(server.members),
            "threshold": server.quorum,
            "min_cohort": server.plan.floor,
            "sums": len(server.plan.sums),
            "authenticated": self.authenticated,
        }

    def shares_for(self, partition: int) -> bytes:
        """Return the shares of the others' secrets for a client."""
        return self.server.boxes_for(self.names[partition])

    def masked(
        self, exchange: BlockExchange, task: BlockTask, clients: Iterable[Client], heard: str
    ) -> MaskedAggregator[Any]:
        """Return empty sums of clients' masked words of a block, of which they heard as told."""
        context = context_of(exchange.config, task.model.weights_hash, heard)
        layout = MaskedExchange(exchange, self.clients).layout(task.model, task.block, task.round)
        names = (sum_name(exchange.name, task.round, task.block, bits) for bits in widths(layout))
        return MaskedAggregator(
            exchange.aggregator(task),
            layout,
            {name: self.server.sum(name, context=context) for name in names},
            {client.name: self.names.get(client.partition, "") for client in clients},
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
        such sums.
        """
        blocks = list(aggregators)
        sums = {name: one for block in blocks for name, one in block.sums.items()}
        if not sums:
            return to.cohort.active
        try:
            for one in sums.values():
                one.close()
        finally:
            keep()
        self._exchange(to, SIGN, sums, {n: s.cohort for n, s in sums.items()}, report)
        asked = {name: one.unmask_request() for name, one in sums.items()}
        self._exchange(to, UNMASK, sums, asked, report)
        inside = set(next(iter(sums.values())).arrived)
        clients = [c for c in to.cohort.clients if self.names.get(c.partition) in inside]
        for block in blocks:
            block.open([contributor(client) for client in clients])
        for dealer, holder in sorted({pair for one in sums.values() for pair in one.misfits}):
            text = "a share of the secrets of '%s' that '%s' gave does not fit and was left out"
            log(WARNING, text, dealer, holder)
        return clients

    def _exchange(
        self,
        to: ExchangeClient,
        kind: str,
        sums: Mapping[str, MaskedSum],
        asked: Mapping[str, bytes],
        report: Report,
    ) -> None:
        """Ask every client about some sums, and give each sum what it gets."""
        content = parts_request(to.config_yaml, asked)

        def take(client: Client, reply: Message) -> None:
            found, name = read_parts(reply, list(sums)), self.names[client.partition]
            for which, data in found.items():
                if kind == SIGN:
                    sums[which].add_signature(name, data)
                else:
                    sums[which].add_unmask(name, data)

        shares = min(len(self.server.participants), _MOST_NEIGHBOURS) * _KEY_BYTES
        most = len(sums) * (_OPENING_BYTES + shares)
        _ask(to, kind, lambda _: content, most, take, report)

    def _read(self, client: Client, reply: Message, sent: dict[Client, Keys]) -> None:
        """Take a client's keys, if they are such and its name is its own."""
        keys, partition = read_keys(reply), client.partition
        name = keys.name if keys.roster else f"partition {partition}"
        if keys.name != name or name in self.names.values():
            raise ReplyRefusedError(
                f"it is called '{keys.name}' in secure sums, as another client is, or as it cannot "
                "be. With a roster each site takes part with one node."
            )
        SecureServer(self.server.plan, Unsigned()).add_advert(name, keys.advert)  # for its checks
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
        server = self.server
        log(
            INFO,
            "secure sums: %d clients, opened by %d or more, over %d or more",
            len(server.members),
            server.quorum,
            server.roll.least,
        )
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
            "names": [[number, name] for number, name in self.names.items()],
            "rosters": [[number, one] for number, one in self.rosters.items()],
        }
        plan = np.frombuffer(self.server.plan.to_bytes(), np.uint8)
        text = np.frombuffer(json.dumps(told).encode(), np.uint8)
        return encode_arrays({"plan": plan, "told": text, **self.server.state()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "SecureSums":
        """Undo :meth:`to_bytes`; ValueError, KeyError or WireError if that made something else."""
        message = Arrays(data, array_names(data))
        arrays = {name: message.take(name, message.announced(name)) for name in message.names}
        told = json.loads(arrays.pop("told").tobytes())
        server = SecureServer(SumPlan.from_bytes(arrays.pop("plan").tobytes()), Unsigned())
        server.restore(arrays)
        return cls(server, told["clients"], dict(told["names"]), dict(told["rosters"]))


@dataclass(frozen=True)
class _Whole:
    """Replies in one message, of a length that is known."""

    reply_bytes: int

    def take(self, outcome: Outcome) -> Outcome:
        return outcome


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
    messages = (to.message(client, kind, content(client)) for client in to.cohort.active)
    gate = _Whole(SHORT_REPLY_BYTES + most)
    for reply in to.replies(messages, phase, report, gate):
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
