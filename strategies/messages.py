"""Requests with what goes with them, replies in segments, refusals noted: an exchange on Flower."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedprune.config import StrategyConfig
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.flower.replies import SHORT_REPLY_BYTES, ReplyLimits
from fedprune.methods.exchange import Aggregator, BlockExchange, Contributor
from fedprune.methods.public_model import FRAME_BYTES, PublicModel
from fedprune.models.transfer import MOST_SEGMENT_BYTES
from fedprune.records import (
    Order,
    joined,
    order_record,
    read_prune,
    read_segment,
    read_sizes,
    request,
)
from fedprune.results.run_status import RunStatus
from strategies.cohort import Client, Cohort
from strategies.exchange import Again, More, Outcome, WorkerDiedError, exchange, no_more
from strategies.progress import Report
from strategies.signatures import note_answer
from strategies.state import RunState


def next_orders(
    clients: Sequence[Client],
    assigned: Mapping[int, Sequence[int]],
    blocks: range,
    positions: Mapping[int, int],
    final: bool,
    number: int = 1,
) -> dict[int, Order]:
    """Return node id -> what each client that works on these blocks is to do.

    `assigned`: partition -> the blocks that its client works on in this round, ascending.
    `positions`: partition -> the block where its client goes on. `number`: the round, from 1.
    """
    found = {}
    for client in clients:
        own = assigned[client.partition]
        mine = tuple(block for block in own if block in blocks)
        if mine:
            last = final and mine[-1] == own[-1]
            start = positions.get(client.partition, 0)
            found[client.node_id] = Order(mine, start, last, MESSAGE_BYTES, round=number)
    return found


def block_chunks(
    num_blocks: int, blocks_per_message: int | None, most_bytes: Callable[[int], int]
) -> list[range]:
    """Return the blocks of each message, in order.

    `blocks_per_message`: how many blocks a message covers; None takes as many as fit into 64 MB.
    `most_bytes`: block -> the most bytes of a client's reply about it.
    """
    if blocks_per_message is None:
        blocks_per_message = max(1, _CHUNK_BYTES // max(map(most_bytes, range(num_blocks))))
    return [
        range(start, min(start + blocks_per_message, num_blocks))
        for start in range(0, num_blocks, blocks_per_message)
    ]


def window_for(configured: int | None, message_bytes: int) -> int:
    """Return how many requests may be under way at once.

    `configured`: `strategy.window`; None takes as many as keep waiting replies within 512 MB.
    `message_bytes`: the most bytes a reply can have.
    """
    if configured is not None:
        return configured
    return max(2, min(_WAITING_REPLIES, _WAITING_BYTES // max(1, message_bytes)))


@dataclass(frozen=True)
class _Collected:
    first: RecordDict
    sizes: dict[int, int]
    parts: list[bytes]

    @property
    def missing(self) -> int:
        return sum(self.sizes.values()) - sum(map(len, self.parts))


@dataclass
class SegmentJoiner:
    """Asks for segment after segment and hands out one whole reply."""

    form: str  # the format of the replies
    segment_bytes: int  # bytes of a segment, the last one excepted
    most_bytes: int  # the most bytes that a whole reply can have, known from the model
    fetch: Callable[[int, int], Message]  # (node id, number of the segment) -> the request for it
    _collected: dict[int, _Collected] = field(default_factory=dict)

    def take(self, node_id: int, reply: Message | None) -> Message | None:
        """Return the request for a reply's next segment; None once it is whole."""
        started = self._collected.pop(node_id, None)
        started = started or self._begun(reply) if reply is not None else None
        if reply is None or started is None:
            return None
        expected = min(self.segment_bytes, started.missing)
        started.parts.append(read_segment(reply, self.form, expected))
        if started.missing:
            self._collected[node_id] = started
            return self.fetch(node_id, len(started.parts))
        reply.content = joined(started.first, b"".join(started.parts), started.sizes, self.form)
        return None

    def _begun(self, reply: Message) -> _Collected | None:
        """Return what a first segment begins, None if the reply is whole."""
        sizes = read_sizes(reply)
        if sizes is None:
            return None
        total = sum(sizes.values())
        if total > self.most_bytes:
            raise ReplyRefusedError(
                f"its reply can have {self.most_bytes} bytes at most, it announces {total}."
            )
        return _Collected(reply.content, sizes, [])


# Flower's runtime holds a message several times in each process on its way; this keeps the
# largest one far below the 100-200 MB at which deployments were seen to fail. A part of a model
# is a message too, and nodes refuse longer ones.
MESSAGE_BYTES = MOST_SEGMENT_BYTES
_CHUNK_BYTES = MESSAGE_BYTES  # of all blocks of a message, as long as one block is no longer
# Replies that may wait in Flower's memory, in bytes and in number.
_WAITING_BYTES = 512_000_000
_WAITING_REPLIES = 256
PRUNE = "train.prune"
FETCH = "query.fetch"
DELIVER = "query.deliver"
FORGET = "query.forget"
# A node starts a process for it, which takes a slow one a while; who is gone is known at once.
_FORGET_SECONDS = 60.0
_FORGET_WINDOW = 256

Bundle = Callable[[int, Order], Mapping[str, bytes]]
"""(Node id, its order) -> the named bytes that go with it."""


@dataclass(frozen=True)
class ExchangeClient:
    """How one exchange sends and receives."""

    grid: Grid  # Flower's connection to the nodes
    cohort: Cohort  # who takes part; one that does not answer is left out
    strategy: StrategyConfig  # `timeout` and `rejoin`
    config_yaml: str  # the configuration that every request carries
    step: int
    window: int  # requests under way at once
    job: str  # the run's key, the group of every message: nodes find by it what they keep
    status: RunStatus  # is told whom something is asked of

    def message(self, node_id: int, kind: str, content: RecordDict) -> Message:
        """Return a request to one client."""
        return Message(content, node_id, kind, ttl=self.strategy.timeout, group_id=self.job)

    def replies(  # noqa: PLR0913 - what an exchange is made of
        self,
        messages: Iterable[Message],
        phase: str,
        report: Report,
        *,
        most_bytes: int = 0,
        more: More = no_more,
        again: Callable[[int], Message] | None = None,
    ) -> Iterator[Message]:
        """Return replies as they arrive; who sends none is refused by name and left out.

        `report`: told after each answer: how many, and of how many. `most_bytes`: of a message,
        beside a few figures. `more`: asks for what is missing. `again`: node id -> its request once
        more, for one whose process dies at its work or that is lost and comes back; without it
        requests are kept until they are answered.
        """
        asked: dict[int, Client] = {}
        total, number = len(self.cohort.active), count(1)

        def ended(outcome: Outcome) -> None:
            self.cohort.note(outcome)
            if outcome.problem:
                client = asked[outcome.node_id]
                self.cohort.refuse(client, self.step, phase, outcome.problem)
                self.cohort.leave_out(client)

        def answered() -> None:
            done = next(number)
            report(done, max(done, total))

        self.status.expect(client.name for client in self.cohort.active)
        report(0, total)
        return exchange(
            self.grid,
            self._noted(messages, asked),
            window=self.window,
            timeout=self.strategy.timeout,
            ended=ended,
            answered=answered,
            more=more,
            again=Again(again, self.strategy.rejoin, lambda node_id: asked[node_id].name),
            gate=ReplyLimits(
                SHORT_REPLY_BYTES + most_bytes,
                lambda strays: self.cohort.ledger.add_strays(self.step, phase, strays),
            ),
        )

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


def _is_long(bundle: Mapping[str, bytes]) -> bool:
    return sum(map(len, bundle.values())) > MESSAGE_BYTES


def _places(bundle: Mapping[str, bytes]) -> list[tuple[str, int]]:
    """Return where segments start: names, and bytes from their beginning."""
    return [
        (name, start)
        for name, data in bundle.items()
        for start in range(0, len(data), MESSAGE_BYTES)
    ]


@dataclass(frozen=True)
class HeldExchange:
    """One exchange as it is held: orders go out, whole answers come in and are folded into sums."""

    client: ExchangeClient
    exchange: BlockExchange  # what is asked, as its answers travel
    model: PublicModel
    orders: Mapping[int, Order]  # node id -> its order
    bundle: Bundle  # what goes with a node's order

    def requests(self) -> Iterator[Message]:
        """Return a request for every order, built when its turn comes.

        What is too long to go with one is delivered before, in segments.
        """
        self._deliver()
        nodes = (client.node_id for client in self.client.cohort.active)
        return (self._request(node_id) for node_id in nodes if node_id in self.orders)

    def replies(self, messages: Iterable[Message], report: Report) -> Iterator[Message]:
        """Return whole replies to the requests as they arrive (see :meth:`ExchangeClient.replies`).

        `messages`: from :meth:`requests`. `report`: told after each answer: how many, and of how
        many.
        """
        blocks = {block for order in self.orders.values() for block in order.blocks}
        most = sum(self.exchange.most_bytes(self.model, block) for block in blocks)
        joiner = SegmentJoiner(self.exchange.form, MESSAGE_BYTES, most, self._segment_request)
        return self.client.replies(
            messages,
            self.exchange.name,
            report,
            most_bytes=min(most, MESSAGE_BYTES),
            more=joiner.take,
            again=self._request,
        )

    def fold(
        self,
        replies: Iterable[Message],
        sums: Mapping[int, Aggregator[Any, Any]],
        contributor: Callable[[Client], Contributor],
        state: RunState,
        folded: Callable[[Client, Order], None] = lambda client, order: None,
    ) -> set[int]:
        """Add answers as they arrive, each whole; a client whose reply is refused is left out.

        `sums`: block -> what its answers are added to. Returns the nodes whose replies were used.
        """
        used: set[int] = set()
        cohort, step, name = self.client.cohort, self.client.step, self.exchange.name
        for message in replies:
            client = cohort.sender(message)
            if client is None:
                continue
            order = self.orders.get(client.node_id)
            if order is None or client.node_id in used:
                problem = "it has already answered this round." if order else "it was not asked."
                cohort.refuse(client, step, name, problem)
                continue
            try:
                most, form = self._most_bytes(order), self.exchange.form
                reply, told = read_prune(message, order.blocks, most, form), contributor(client)
                checked = {}
                for block, payload in reply.blocks.items():
                    with _of_block(block):
                        checked[block] = sums[block].check(payload, told)
                note_answer(state, reply, client)
                for block, answer in checked.items():
                    sums[block].add(answer, told)
            except (ReplyRefusedError, WireError) as error:
                cohort.refuse(client, step, name, str(error))
                cohort.leave_out(client)
                continue
            used.add(client.node_id)
            memory = reply.peak_rss_bytes, reply.peak_device_bytes
            cohort.ledger.add(cohort.entry(client, step, name).worked(reply.seconds, *memory))
            folded(client, order)
        return used

    def _most_bytes(self, order: Order) -> dict[int, int]:
        """Return block -> the most bytes that an answer about it can have in a message."""
        # A frame more: a message about a block of which nothing is pruned is one, too.
        model = self.model
        return {b: FRAME_BYTES + self.exchange.most_bytes(model, b) for b in order.blocks}

    def _request(self, node_id: int) -> Message:
        """Return a node's request; of what was delivered before it says only the sizes."""
        order = self.orders[node_id]
        found = self.bundle(node_id, order)
        sent = {name: len(data) for name, data in found.items()} if _is_long(found) else None
        content = order_record(self.client.config_yaml, order, {} if sent else found, sent)
        return self.client.message(node_id, PRUNE, content)

    def _segment_request(self, node_id: int, number: int) -> Message:
        """Return the request for a later segment of a node's reply."""
        content = order_record(self.client.config_yaml, self.orders[node_id])
        content.config_records["config"]["segment"] = number
        return self.client.message(node_id, FETCH, content)

    def _deliver(self) -> None:
        """Send bundles that are too long for a request ahead of it, in segments."""
        found = {node_id: self.bundle(node_id, order) for node_id, order in self.orders.items()}
        long = {node_id: each for node_id, each in found.items() if _is_long(each)}
        if not long:
            return
        places = {node_id: _places(each) for node_id, each in long.items()}
        cohort = self.client.cohort
        clients = {client.node_id: client for client in cohort.active}

        def message(node_id: int) -> Message:
            name, start = places[node_id].pop(0)
            data = long[node_id][name][start : start + MESSAGE_BYTES]
            content = request(self.client.config_yaml, {"segment": data}, name=name, start=start)
            return self.client.message(node_id, DELIVER, content)

        def more(node_id: int, reply: Message | None) -> Message | None:
            return message(node_id) if reply is not None and places[node_id] else None

        first = (message(node_id) for node_id in list(places))
        for reply in self.client.replies(first, "deliver", lambda done, total: None, more=more):
            client = clients[reply.metadata.src_node_id]
            cohort.ledger.add(cohort.entry(client, self.client.step, "deliver"))


@contextlib.contextmanager
def _of_block(block: int) -> Iterator[None]:
    """Say of which block it is that an answer is wrong."""
    try:
        yield
    except WireError as error:
        raise ReplyRefusedError(f"block {block}: {error}") from None
