"""Messages out, replies in: requests with their bundles, long ones in parcels, lost ones noted."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedprune.config import StrategyConfig
from fedprune.flower.replies import SHORT_REPLY_BYTES, ReplyLimits
from fedprune.records import Order, order_record, request
from fedprune.results.run_status import RunStatus
from strategies.cohort import Cohort
from strategies.exchange import Joiner, WorkerDiedError, exchange
from strategies.handshake import Client
from strategies.outcome import Outcome
from strategies.parcels import ParcelJoiner
from strategies.plan import MESSAGE_BYTES
from strategies.repeats import Again

PRUNE = "train.prune"
FETCH = "query.fetch"
DELIVER = "query.deliver"
FORGET = "query.forget"
# A node starts a process for it, which takes a slow one a while; who is gone is known at once.
_FORGET_SECONDS = 60.0
_FORGET_WINDOW = 256

Bundle = Callable[[Order], Mapping[str, bytes]]
"""Order -> the named bytes that go with it."""

Ahead = Mapping[int, Mapping[str, int]]
"""Node id -> name -> bytes of what was delivered before its order."""


class Collector(Joiner, Protocol):
    """A joiner that knows how long the messages are."""

    @property
    def reply_bytes(self) -> int:
        """The most bytes of one of them."""
        ...


@dataclass(frozen=True)
class Post:
    """How one exchange sends and receives.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    cohort : Cohort
        Who takes part; one that does not answer is left out.
    strategy : StrategyConfig
        `timeout` and `rejoin`.
    config_yaml : str
        The configuration that every request carries.
    step : int
        The ledger's round.
    window : int
        Requests under way at once.
    job : str
        The run's key, the group of every message: nodes find by it what they keep.
    status : RunStatus
        Is told whom something is asked of.
    """

    grid: Grid
    cohort: Cohort
    strategy: StrategyConfig
    config_yaml: str
    step: int
    window: int
    job: str
    status: RunStatus

    def message(self, client: Client, kind: str, content: RecordDict) -> Message:
        """Return a request to one client."""
        ttl = self.strategy.timeout
        return Message(content, client.node_id, kind, ttl=ttl, group_id=self.job)

    def requests(
        self, orders: Mapping[int, Order], bundle: Bundle, ahead: Ahead | None = None
    ) -> Iterator[Message]:
        """Yield a request to prune for every order, built when its turn comes.

        Parameters
        ----------
        orders : Mapping[int, Order]
            Node id -> its order.
        bundle : Callable[[Order], Mapping[str, bytes]]
            What goes with an order.
        ahead : Mapping[int, Mapping[str, int]], optional
            What :meth:`deliver` has sent.
        """
        for client in self.cohort.active:
            order = orders.get(client.node_id)
            if order is not None:
                sent = ahead.get(client.node_id) if ahead else None
                found = {} if sent else bundle(order)
                content = order_record(self.config_yaml, order, found, sent)
                yield self.message(client, PRUNE, content)

    def again(self, orders: Mapping[int, Order], bundle: Bundle) -> Callable[[int], Message]:
        """Return node id -> its order once more; what was delivered ahead is still there."""
        clients = {client.node_id: client for client in self.cohort.active}

        def message(node_id: int) -> Message:
            order, found = orders[node_id], bundle(orders[node_id])
            sent = _sizes(found) if _is_long(found) else None
            content = order_record(self.config_yaml, order, {} if sent else found, sent)
            return self.message(clients[node_id], PRUNE, content)

        return message

    def joiner(self, orders: Mapping[int, Order], form: str, most_bytes: int) -> ParcelJoiner:
        """Return what asks for the other parcels of replies that are too long for a message."""
        clients = {client.node_id: client for client in self.cohort.active}

        def fetch(node_id: int, number: int) -> Message:
            content = order_record(self.config_yaml, orders[node_id])
            content.config_records["config"]["parcel"] = number
            return self.message(clients[node_id], FETCH, content)

        return ParcelJoiner(form, MESSAGE_BYTES, most_bytes, fetch)

    def replies(
        self,
        messages: Iterable[Message],
        phase: str,
        report: Callable[[int, int], None],
        joiner: Collector | None = None,
        again: Callable[[int], Message] | None = None,
    ) -> Iterator[Message]:
        """Yield replies as they arrive; who sends none is refused by name and left out.

        Parameters
        ----------
        messages : Iterable[Message]
            The requests, each sent when its turn comes.
        phase : str
            The ledger's name for the exchange.
        report : Callable[[int, int], None]
            Told after each answer: how many, and of how many.
        joiner : Collector, optional
            Puts together what comes in parcels.
        again : Callable[[int], Message], optional
            Node id -> its request once more, for one whose process dies at its work or that is
            lost and comes back; without it requests are kept until they are answered.
        """
        asked: dict[int, Client] = {}
        total = len(self.cohort.active)
        outcomes = exchange(
            self.grid,
            self._noted(messages, asked),
            window=self.window,
            timeout=self.strategy.timeout,
            joiner=joiner,
            again=Again(again, self.strategy.rejoin, lambda node_id: asked[node_id].name),
            gate=ReplyLimits(
                joiner.reply_bytes if joiner else SHORT_REPLY_BYTES,
                lambda count: self.cohort.ledger.add_strays(self.step, phase, count),
            ),
        )
        self.status.expect(client.name for client in self.cohort.active)
        report(0, total)
        for answered, outcome in enumerate(outcomes, start=1):
            self.cohort.note(outcome)
            if outcome.reply is not None:
                yield outcome.reply
            else:
                client = asked[outcome.node_id]
                self.cohort.refuse(client, self.step, phase, outcome.problem)
                self.cohort.leave_out(client)
            report(answered, max(answered, total))

    def deliver(self, orders: Mapping[int, Order], bundle: Bundle) -> Ahead:
        """Send bundles that are too long for a request ahead of it, in parcels.

        Returns
        -------
        Mapping[int, Mapping[str, int]]
            Node id -> name -> bytes of what was sent to it.
        """
        found = {node_id: bundle(order) for node_id, order in orders.items()}
        long = {node_id: each for node_id, each in found.items() if _is_long(each)}
        if not long:
            return {}
        places = {node_id: _places(each) for node_id, each in long.items()}
        clients = {client.node_id: client for client in self.cohort.active}

        def message(node_id: int) -> Message:
            name, start = places[node_id].pop(0)
            data = long[node_id][name][start : start + MESSAGE_BYTES]
            content = request(self.config_yaml, {"parcel": data}, name=name, start=start)
            return self.message(clients[node_id], DELIVER, content)

        joiner = _Deliveries(places, message)
        first = (message(node_id) for node_id in list(places))
        for reply in self.replies(first, "deliver", lambda done, total: None, joiner):
            client = clients[reply.metadata.src_node_id]
            self.cohort.ledger.add(self.cohort.entry(client, self.step, "deliver"))
        return {node_id: _sizes(each) for node_id, each in long.items()}

    def _noted(self, messages: Iterable[Message], asked: dict[int, Client]) -> Iterator[Message]:
        clients = {client.node_id: client for client in self.cohort.active}
        for message in messages:
            node_id = message.metadata.dst_node_id
            asked[node_id] = clients[node_id]
            self.status.asked(clients[node_id].name)
            yield message


def forget(grid: Grid, nodes: Iterable[int], job: str) -> None:
    """Let nodes delete what they keep of a job; one that does not answer does so in a week."""
    messages = (
        Message(RecordDict(), node, FORGET, ttl=_FORGET_SECONDS, group_id=job) for node in nodes
    )
    # Nothing depends on the answers, and they are not part of the run's traffic.
    with contextlib.suppress(WorkerDiedError):
        for _ in exchange(grid, messages, window=_FORGET_WINDOW, timeout=_FORGET_SECONDS):
            pass


@dataclass(frozen=True)
class _Deliveries:
    """Sends the next parcel when the one before has arrived."""

    places: Mapping[int, list[tuple[str, int]]]
    message: Callable[[int], Message]
    _so_far: dict[int, Outcome] = field(default_factory=dict)

    @property
    def reply_bytes(self) -> int:
        """The most bytes of an answer."""
        return SHORT_REPLY_BYTES

    def take(self, outcome: Outcome) -> Outcome | Message:
        before = self._so_far.pop(outcome.node_id, None)
        total = outcome.after(before)
        if outcome.reply is not None and self.places[outcome.node_id]:
            self._so_far[outcome.node_id] = total
            return self.message(outcome.node_id)
        return total


def _is_long(bundle: Mapping[str, bytes]) -> bool:
    return sum(map(len, bundle.values())) > MESSAGE_BYTES


def _sizes(bundle: Mapping[str, bytes]) -> dict[str, int]:
    return {name: len(data) for name, data in bundle.items()}


def _places(bundle: Mapping[str, bytes]) -> list[tuple[str, int]]:
    """Return where parcels start: names, and bytes from their beginning."""
    return [
        (name, start)
        for name, data in bundle.items()
        for start in range(0, len(data), MESSAGE_BYTES)
    ]
