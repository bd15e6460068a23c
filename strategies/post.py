"""Messages out, replies in: requests with their bundles, long ones in parcels, lost ones noted."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedprune.config import StrategyConfig
from fedprune.records import Order, order_record, request
from strategies.cohort import Cohort
from strategies.exchange import Joiner, Outcome, WorkerDiedError, exchange
from strategies.handshake import Client
from strategies.parcels import ParcelJoiner, added
from strategies.plan import MESSAGE_BYTES

PRUNE = "train.prune"
FETCH = "query.fetch"
DELIVER = "query.deliver"
FORGET = "query.forget"
_FORGET_SECONDS = 10.0
_FORGET_WINDOW = 256

Bundle = Callable[[Order], Mapping[str, bytes]]
"""Order -> the named bytes that go with it."""


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
        `timeout`.
    config_yaml : str
        The configuration that every request carries.
    step : int
        The ledger's round.
    window : int
        Requests under way at once.
    job : str
        The run's key, the group of every message: nodes find by it what they keep.
    """

    grid: Grid
    cohort: Cohort
    strategy: StrategyConfig
    config_yaml: str
    step: int
    window: int
    job: str

    def message(self, client: Client, kind: str, content: RecordDict) -> Message:
        """Return a request to one client."""
        ttl = self.strategy.timeout
        return Message(content, client.node_id, kind, ttl=ttl, group_id=self.job)

    def requests(self, orders: Mapping[int, Order], bundle: Bundle) -> Iterator[Message]:
        """Yield a request to prune for every order, built when its turn comes."""
        for client in self.cohort.active:
            order = orders.get(client.node_id)
            if order is not None:
                content = order_record(self.config_yaml, order, bundle(order))
                yield self.message(client, PRUNE, content)

    def again(self, orders: Mapping[int, Order], bundle: Bundle) -> Callable[[int], Message]:
        """Return node id -> its order once more; what was delivered ahead is still there."""
        clients = {client.node_id: client for client in self.cohort.active}

        def message(node_id: int) -> Message:
            order, found = orders[node_id], bundle(orders[node_id])
            short = sum(map(len, found.values())) <= MESSAGE_BYTES
            content = order_record(self.config_yaml, order, found if short else {})
            log(WARNING, "%s: its process died; it is asked once more", clients[node_id].name)
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
        joiner: Joiner | None = None,
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
        joiner : Joiner, optional
            Puts together what comes in parcels.
        again : Callable[[int], Message], optional
            Node id -> its request once more, for one whose process dies at its work.
        """
        asked: dict[int, Client] = {}
        total = len(self.cohort.active)
        outcomes = exchange(
            self.grid,
            self._noted(messages, asked),
            window=self.window,
            timeout=self.strategy.timeout,
            joiner=joiner,
            again=again,
        )
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

    def deliver(self, orders: Mapping[int, Order], bundle: Bundle) -> Bundle:
        """Send bundles that are too long for a request ahead of it, in parcels.

        Returns
        -------
        Bundle
            What still has to go with the requests themselves.
        """
        ahead = {
            node_id: _parcels(bundle(order))
            for node_id, order in orders.items()
            if sum(map(len, bundle(order).values())) > MESSAGE_BYTES
        }
        if not ahead:
            return bundle
        clients = {client.node_id: client for client in self.cohort.active}

        def message(node_id: int) -> Message:
            name, number, data = ahead[node_id].pop(0)
            content = request(self.config_yaml, {"parcel": data}, name=name, parcel=number)
            return self.message(clients[node_id], DELIVER, content)

        joiner = _Deliveries(ahead, message)
        first = (message(node_id) for node_id in list(ahead))
        for reply in self.replies(first, "deliver", lambda done, total: None, joiner):
            client = clients[reply.metadata.src_node_id]
            self.cohort.ledger.add(self.cohort.entry(client, self.step, "deliver"))
        long = {orders[node_id].blocks for node_id in ahead}
        return lambda order: {} if order.blocks in long else bundle(order)

    def _noted(self, messages: Iterable[Message], asked: dict[int, Client]) -> Iterator[Message]:
        clients = {client.node_id: client for client in self.cohort.active}
        for message in messages:
            node_id = message.metadata.dst_node_id
            asked[node_id] = clients[node_id]
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

    ahead: Mapping[int, list[tuple[str, int, bytes]]]
    message: Callable[[int], Message]
    _so_far: dict[int, Outcome] = field(default_factory=dict)

    def take(self, outcome: Outcome) -> Outcome | Message:
        before = self._so_far.pop(outcome.node_id, None)
        total = added(before, outcome) if before else outcome
        if outcome.reply is not None and self.ahead[outcome.node_id]:
            self._so_far[outcome.node_id] = total
            return self.message(outcome.node_id)
        return total


def _parcels(bundle: Mapping[str, bytes]) -> list[tuple[str, int, bytes]]:
    return [
        (name, number, data[start : start + MESSAGE_BYTES])
        for name, data in bundle.items()
        for number, start in enumerate(range(0, len(data), MESSAGE_BYTES))
    ]
