"""Ask nodes, wait for their replies, check these, and ask again who is lost."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from logging import WARNING

from flwr.app import Error, Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedprune.errors import FedpruneError, ReplyRefusedError
from fedprune.flower.replies import (
    ExpectedReply,
    ReceivedReply,
    ReplyLimits,
    drop_reply,
    pull_reply,
)
from fedprune.records import message_bytes, shown


@dataclass(frozen=True)
class Outcome:
    """The end of one request."""

    node_id: int  # whom it was sent to
    problem: str  # why there is no reply; "" if there is
    # bytes_down, bytes_up: serialised sizes of request and reply
    bytes_down: int
    bytes_up: int
    seconds: float  # from handing over the request until the reply was in hand
    crashed: bool = False  # whether the process that worked on it died, while its node is well
    lost: bool = False  # whether its node, or its reply on the way, was lost
    reply: Message | None = None  # only where it is told how the request ended

    def after(self, before: "Outcome | None") -> "Outcome":
        """Return this outcome with the bytes and seconds of one before it."""
        if before is None:
            return self
        return replace(
            self,
            bytes_down=before.bytes_down + self.bytes_down,
            bytes_up=before.bytes_up + self.bytes_up,
            seconds=before.seconds + self.seconds,
        )


_FRESH_SECONDS = 1.0
_RECONNECT_LOOK_SECONDS = 5.0


class Activations:
    """Knows when nodes connected, as Flower says it.

    Flower tells of a lost node only while it is away. One that restarts between two looks would
    never answer, and its request would wait for the time-out.

    `grid`: knows the nodes. Flower's own, in a deployment and in a simulation, say when each
    connected; others say nothing, and nothing is noticed. `clock`: seconds from any origin.
    """

    def __init__(self, grid: Grid, clock: Callable[[], float] = time.monotonic) -> None:
        self._grid = grid
        self._clock = clock
        self._known: dict[int, str] = {}
        self._looked = -float("inf")

    def of(self, node_id: int) -> str:
        """Return when a node connected; "" if unknown."""
        self._look(_FRESH_SECONDS)
        return self._known.get(node_id, "")

    def renewed(self, node_id: int, then: str) -> bool:
        """Return whether a node that connected ``then`` has done so again."""
        self._look(_RECONNECT_LOOK_SECONDS)
        return bool(then) and self._known.get(node_id, then) != then

    def _look(self, seconds: float) -> None:
        now = self._clock()
        if now - self._looked >= seconds:
            self._looked = now
            nodes = self._grid.get_nodes()
            self._known = {node.node_id: node.last_activated_at for node in nodes}


_MOST_RETURNS = 5  # without an answer: who is lost more often would hold the others up for ever
_LOOK_SECONDS = 0.5
# Between two looks. Longer ones were spent elsewhere, such as on a SuperLink that was away too.
_MOST_COUNTED_SECONDS = 5.0

Repeat = Callable[[], Message]
"""Builds a request once more."""


@dataclass(frozen=True)
class Again:
    """How requests are repeated."""

    # node id -> its request once more. Without it a request's content is kept until it is answered.
    message: Callable[[int], Message] | None = None
    rejoin: float = 0.0  # seconds that a lost node has to come back; 0: none is waited for
    name: Callable[[int], str] = "node {}".format  # node id -> what log lines call it

    def of(self, request: Message) -> Repeat:
        """Return what builds a node's first request once more."""
        node_id, message = request.metadata.dst_node_id, self.message
        return renewed(request) if message is None else lambda: message(node_id)


def renewed(request: Message) -> Repeat:
    """Return what builds a message of the same content, made later and so with another id."""
    content, told = request.content, request.metadata
    return lambda: Message(
        content, told.dst_node_id, told.message_type, ttl=told.ttl, group_id=told.group_id
    )


@dataclass
class Unanswered:
    """A request that is to be sent once more."""

    outcome: Outcome  # what came of the tries so far
    repeat: Repeat  # builds it once more
    since: float  # when its node was missed
    left: float  # seconds that the node has to come back


class Repeats:
    """Decides which requests of an exchange are sent once more, and when.

    A process that died at its work is asked again at once, one time: the kernel may have killed it
    for memory that another program needed. A node that is lost may come back under its id, and is
    asked then. Orders can be followed twice, and segments taken twice.

    `clock`: seconds from any origin.
    """

    def __init__(
        self, grid: Grid, again: Again, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._grid = grid
        self._again = again
        self._clock = clock
        self._looked = clock()
        self._crashed: set[int] = set()
        self._returns: dict[int, int] = {}
        self._absent: dict[int, Unanswered] = {}
        self._ready: list[Unanswered] = []

    @property
    def some(self) -> bool:
        """Whether a request may still be sent once more."""
        return bool(self._absent or self._ready)

    def take(self, outcome: Outcome, repeat: Repeat) -> bool:
        """Return whether an outcome is not the last one: its request is sent once more."""
        node_id, rejoin = outcome.node_id, self._again.rejoin
        if not outcome.problem:
            self._returns.pop(node_id, None)
            return False
        name = self._again.name(node_id)
        found = Unanswered(outcome, repeat, self._clock(), rejoin)
        if outcome.crashed and node_id not in self._crashed:
            text = "%s: its process died; it is asked once more"
            log(WARNING, text, name, extra={"node": name})
            self._crashed.add(node_id)
            self._ready.append(found)
            return True
        if not outcome.lost or not self._may_return(node_id):
            return False
        text = "%s is lost: %s; it has %g s to come back (`strategy.rejoin`)"
        log(WARNING, text, name, outcome.problem, rejoin, extra={"node": name})
        if not self._absent:
            self._looked = found.since
        self._absent[node_id] = found
        return True

    def next(self) -> Unanswered | None:
        """Return what can be sent once more now, None if there is nothing."""
        return self._ready.pop(0) if self._ready else None

    def look(self) -> Iterator[Outcome]:
        """See who is back; yield the outcomes of those whose time is over."""
        now = self._clock()
        if not self._absent or now - self._looked < _LOOK_SECONDS:
            return
        here = set(self._grid.get_node_ids())
        counted = min(now - self._looked, _MOST_COUNTED_SECONDS)
        self._looked = now
        for node_id, absent in list(self._absent.items()):
            absent.left -= counted
            if node_id in here:
                name, away = self._again.name(node_id), now - absent.since
                log(WARNING, "%s is back after %.0f s; it is asked once more", name, away)
                self._ready.append(self._absent.pop(node_id))
            elif absent.left <= 0:
                outcome = self._absent.pop(node_id).outcome
                waited = f"it did not come back within {self._again.rejoin:g} s"
                problem = f"{outcome.problem}; {waited} (`strategy.rejoin`)"
                yield replace(outcome, problem=problem)

    def _may_return(self, node_id: int) -> bool:
        if not self._again.rejoin:
            return False
        self._returns[node_id] = self._returns.get(node_id, 0) + 1
        return self._returns[node_id] <= _MOST_RETURNS


# Error codes of Flower's replies that mean more than "this request failed".
_UNKNOWN = 0
_GONE_ON_THE_WAY = (3, 4)
_NODE_LOST = 5
_APP_CRASHED = 8
_POLL_SECONDS = (0.02, 0.5)
# Flower says so of an expired message too, by its own clock: near the time-out it is that.
_SHARE_OF_TIMEOUT = 0.9


class WorkerDiedError(FedpruneError):
    """A simulation worker died; Flower never replaces it and it swallows later messages."""


More = Callable[[int, Message | None], Message | None]
"""(Node id, its reply) -> the request for what is missing of the reply, None if nothing is.

Of several parts the last becomes the whole. None for a reply: no more comes of it. Raises
ReplyRefusedError if it is none of several.
"""


def no_more(node_id: int, reply: Message | None) -> None:
    """Ask for nothing: every reply is whole."""


@dataclass(frozen=True)
class _Pending:
    node_id: int
    asked: ExpectedReply
    bytes_down: int
    sent: float
    connected: str
    repeat: Repeat
    before: Outcome | None


def exchange(  # noqa: PLR0913 - what an exchange is made of
    grid: Grid,
    requests: Iterable[Message],
    *,
    window: int,
    timeout: float,
    ended: Callable[[Outcome], object] = lambda outcome: None,
    answered: Callable[[], object] = lambda: None,
    more: More = no_more,
    again: Again | None = None,
    gate: ReplyLimits | None = None,
) -> Iterator[Message]:
    """Yield the replies to requests, in the order of arrival: ask, wait, check, and ask again.

    `window`: requests under way at once; bounds the replies that wait in Flower's memory.
    `timeout`: seconds a node has for its reply. `ended`: told how each request ended, before its
    reply is handed out; `answered`: told when that was used. `more`: sees each reply first and may
    ask for the next part of it. `again`: how requests are repeated whose process died or whose node
    was lost; without it no node is waited for. `gate`: how long replies can be; without it as long
    as those of a few figures. Raises WorkerDiedError if a simulation worker died.
    """
    gate, todo, pause = gate or ReplyLimits(), iter(requests), _POLL_SECONDS[0]
    under_way = _UnderWay(grid, timeout, more, again or Again(), gate)
    try:
        while under_way.fill(todo, window):
            finished = False
            for message_id in list(under_way.pending):
                asked = under_way.pending[message_id].asked
                arrived = pull_reply(grid, asked, gate) if asked.request_id else None
                outcome = under_way.settle(message_id, arrived)
                finished |= message_id not in under_way.pending
                reply = arrived.message if arrived and outcome and not outcome.problem else None
                if outcome is not None:
                    ended(replace(outcome, reply=reply))
                    if reply is not None:
                        yield reply
                    answered()
                del arrived, reply  # dropped before the next one is taken in
            for absent in under_way.given_up():
                ended(absent)
                answered()
            pause = _POLL_SECONDS[0] if finished else min(pause * 1.3, _POLL_SECONDS[1])
            if not finished:
                time.sleep(pause)
    finally:
        gate.close()


class _UnderWay:
    """Requests under way; parameters as :func:`exchange`."""

    def __init__(
        self, grid: Grid, timeout: float, more: More, again: Again, gate: ReplyLimits
    ) -> None:
        self._grid = grid
        self._timeout = timeout
        self._more = more
        self._again = again
        self._gate = gate
        self._repeats = Repeats(grid, again)
        self._activations = Activations(grid) if again.rejoin else None
        self.pending: dict[str, _Pending] = {}

    def fill(self, todo: Iterator[Message], window: int) -> bool:
        """Send as many requests as the window has room for; return whether any is open."""
        while len(self.pending) < window:
            waiting = self._repeats.next()
            if waiting is not None:
                self._push(waiting.repeat(), waiting.repeat, waiting.outcome)
                continue
            request = next(todo, None)
            if request is None:
                break
            self._push(request, self._again.of(request))
            del request
        return bool(self.pending) or self._repeats.some

    def settle(self, message_id: str, arrived: ReceivedReply | None) -> Outcome | None:
        """Return how a request ended; None if it has not, or its node was asked for more."""
        entry = self.pending[message_id]
        outcome = self._end(entry, arrived)
        if outcome is None:
            return None
        del self.pending[message_id]
        outcome = outcome.after(entry.before)
        if self._repeats.take(outcome, entry.repeat):
            return None
        reply = arrived.message if arrived and not outcome.problem else None
        try:
            request = self._more(entry.node_id, reply)
        except ReplyRefusedError as error:
            return replace(outcome, problem=str(error))
        if request is None:
            return outcome
        self._push(request, renewed(request), outcome)
        return None

    def given_up(self) -> Iterator[Outcome]:
        """Yield the outcomes of nodes whose time to come back is over, with what came before."""
        for outcome in self._repeats.look():
            self._more(outcome.node_id, None)
            yield outcome

    def _push(self, request: Message, repeat: Repeat, before: Outcome | None = None) -> None:
        node_id, size = request.metadata.dst_node_id, message_bytes(request)
        connected = self._activations.of(node_id) if self._activations else ""
        sent = time.monotonic()
        # A node that has just left gets no message id.
        message_id = next(iter(self._grid.push_messages([request])), "") or ""
        asked = ExpectedReply(message_id, request.metadata, self._gate.most_bytes)
        entry = _Pending(node_id, asked, size, sent, connected, repeat, before)
        self.pending[message_id or f"unsent-{id(repeat)}"] = entry

    def _end(self, entry: _Pending, arrived: ReceivedReply | None) -> Outcome | None:
        """Return how a request ended with what has come, None if it has not."""
        if not entry.asked.request_id:
            problem = "it left before it could be asked"
            return Outcome(entry.node_id, problem, 0, 0, 0.0, lost=True)
        seconds, down = time.monotonic() - entry.sent, entry.bytes_down
        if arrived is not None:
            if arrived.message is not None and arrived.message.has_error():
                return self._failed(entry, arrived.message.error, arrived.size, seconds)
            return Outcome(entry.node_id, arrived.problem, down, arrived.size, seconds)
        problem = ""
        if seconds > self._timeout:
            problem = f"no reply within {self._timeout:g} s (`strategy.timeout`)"
        elif self._activations and self._activations.renewed(entry.node_id, entry.connected):
            problem = "it has started anew"
        if not problem:
            return None
        drop_reply(self._grid, entry.asked)
        lost = seconds <= self._timeout
        return Outcome(entry.node_id, problem, down, 0, seconds, lost=lost)

    def _failed(self, entry: _Pending, error: Error, size: int, seconds: float) -> Outcome:
        """Return the end of a request that was answered with one of Flower's errors."""
        code, problem = error.code, _last_line(error.reason)
        if code == _UNKNOWN and "ray" in (error.reason or "").lower():
            raise WorkerDiedError(
                f"a simulation worker died and would swallow further messages ({problem}). Usually "
                "it ran out of memory: lower `federation.client_cpus` workers per machine, "
                "`pruner.seq_len` or `pruner.num_calibration_samples`."
            )
        early = seconds < _SHARE_OF_TIMEOUT * self._timeout
        crashed, lost = code == _APP_CRASHED, code == _NODE_LOST
        lost = lost or (code in _GONE_ON_THE_WAY and early)
        problem = f"it failed: {problem} (Flower error {code})"
        return Outcome(entry.node_id, problem, entry.bytes_down, size, seconds, crashed, lost)


def _last_line(reason: str | None) -> str:
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return shown(lines[-1], 500) if lines else "no reason given"
