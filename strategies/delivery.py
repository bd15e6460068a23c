"""Send the model to nodes that lack it: to several at once, to each segment after segment.

A node answers each part with how many segments it has, so a transfer that was cut off goes on where
it was. The parts are the same for all nodes: Flower stores and the server reads a segment once for
all that are at the same place, and no more segments are in memory than nodes are sent to at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedprune.errors import ReplyRefusedError
from fedprune.flower.replies import ReplyLimits
from fedprune.models.transfer import Offer
from fedprune.records import manifest_record, read_held, segment_record
from fedprune.results.ledger import Ledger
from strategies.exchange import Again, Outcome, exchange

MODEL = "query.model"
PHASE = "model"
_MANIFEST = -1

Sent = Callable[[int, int], None]
"""Told after each answer: how many segments the nodes have together, and of how many."""


@dataclass
class Delivery:
    """Brings nodes a model."""

    offer: Offer
    timeout: float  # seconds a node has to take a segment (`strategy.timeout`)
    window: int  # nodes that are sent segments at once
    job: str  # the run's key, the group of every message
    rejoin: float  # seconds that a lost node has to come back (`strategy.rejoin`)
    ledger: Ledger  # is told of messages that nobody asked for
    sent: Sent  # told after each answer how many segments the nodes have together, and of how many
    _held: dict[int, int] = field(default_factory=dict)
    _answers: dict[int, int] = field(default_factory=dict)
    _latest: tuple[int, RecordDict] | None = None

    def run(
        self, grid: Grid, node_ids: Iterable[int], ended: Callable[[Outcome], object]
    ) -> list[int]:
        """Return the nodes that have the whole model then; ``ended``: told once of each node."""
        self._held = dict.fromkeys(node_ids, 0)
        first = (self._message(node_id, _MANIFEST) for node_id in list(self._held))
        again = Again(rejoin=self.rejoin)
        gate = ReplyLimits(on_strays=lambda count: self.ledger.add_strays(0, PHASE, count))
        replies = exchange(
            grid,
            first,
            window=self.window,
            timeout=self.timeout,
            ended=ended,
            more=self._more,
            again=again,
            gate=gate,
        )
        whole = [reply.metadata.src_node_id for reply in replies]
        self._latest = None
        return whole

    def _more(self, node_id: int, reply: Message | None) -> Message | None:
        """Return the next segment for a node, None if its delivery is over."""
        total = len(self.offer.manifest.segments)
        held = self._noted(node_id, reply) if reply is not None else total
        return self._message(node_id, held) if held < total else None

    def _noted(self, node_id: int, reply: Message) -> int:
        total = len(self.offer.manifest.segments)
        held = read_held(reply, total)
        answers = self._answers[node_id] = self._answers.get(node_id, 0) + 1
        # The manifest and every segment are answered once; a file that spoils on a disk, anew.
        if answers > 2 * total + 2:
            raise ReplyRefusedError(f"it took {answers} parts of a model of {total} segments.")
        self._held[node_id] = held
        self.sent(sum(self._held.values()), total * len(self._held))
        return held

    def _message(self, node_id: int, number: int) -> Message:
        content = self._content(number)
        return Message(content, node_id, MODEL, ttl=self.timeout, group_id=self.job)

    def _content(self, number: int) -> RecordDict:
        if self._latest is None or self._latest[0] != number:
            manifest = self.offer.manifest
            self._latest = None  # so that two segments are never held
            content = (
                manifest_record(manifest)
                if number == _MANIFEST
                else segment_record(manifest.digest, number, self.offer.segment(number))
            )
            self._latest = (number, content)
        return self._latest[1]
