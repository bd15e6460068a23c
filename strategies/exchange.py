"""Send requests in a window and hand out replies one by one.

`Grid.send_and_receive` holds every reply in memory and says nothing of nodes that stay silent.
Here at most `window` requests are under way, one reply is in hand at a time, and each request ends
in exactly one outcome: a reply or the reason why there is none. Only the reply to the latest
message to a node is ever asked for, so one that comes late is nobody's.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedprune.errors import FedpruneError
from fedprune.flower.replies import (
    ExpectedReply,
    ReceivedReply,
    ReplyLimits,
    drop_reply,
    pull_reply,
)
from fedprune.records import message_bytes, shown
from strategies.activations import Activations
from strategies.outcome import Outcome
from strategies.repeats import Again, Repeat, Repeats, renewed

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


class Joiner(Protocol):
    """Puts together what comes in several messages."""

    def take(self, outcome: Outcome) -> Outcome | Message:
        """Return the outcome of the whole, or the request for what is still missing."""
        ...


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
    joiner: Joiner | None = None,
    again: Again | None = None,
    gate: ReplyLimits | None = None,
) -> Iterator[Outcome]:
    """Yield one outcome for every request, in the order of arrival.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    requests : Iterable[Message]
        Built only when their turn comes.
    window : int
        Requests under way at once; bounds the replies that wait in Flower's memory.
    timeout : float
        Seconds a node has for its reply.
    joiner : Joiner, optional
        Sees each outcome first and may ask for more before it is handed out.
    again : Again, optional
        How requests are repeated whose process died or whose node was lost; without it no node is
        waited for.
    gate : ReplyLimits, optional
        How long replies can be; without it as long as those of a few figures.

    Raises
    ------
    WorkerDiedError
        If a simulation worker died.
    """
    gate = gate or ReplyLimits()
    under_way = _Exchange(grid, timeout, joiner, again or Again(), gate)
    try:
        yield from under_way.run(iter(requests), window)
    finally:
        gate.close()


class _Exchange:
    """Requests under way; parameters as :func:`exchange`."""

    def __init__(
        self, grid: Grid, timeout: float, joiner: Joiner | None, again: Again, gate: ReplyLimits
    ) -> None:
        self._grid = grid
        self._timeout = timeout
        self._joiner = joiner
        self._again = again
        self._gate = gate
        self._repeats = Repeats(grid, again)
        self._activations = Activations(grid) if again.rejoin else None
        self._pending: dict[str, _Pending] = {}

    def run(self, todo: Iterator[Message], window: int) -> Iterator[Outcome]:
        """Yield one outcome for every request."""
        pause = _POLL_SECONDS[0]
        while self._fill(todo, window) or self._repeats.some:
            finished = False
            for message_id in list(self._pending):
                outcome = self._poll(message_id, self._pending[message_id])
                if outcome is None:
                    continue
                finished = True
                found = self._settle(self._pending.pop(message_id), outcome)
                del outcome
                if found is not None:
                    yield found
                del found
            for outcome in self._repeats.look():
                yield self._last(outcome)
            pause = _POLL_SECONDS[0] if finished else min(pause * 1.3, _POLL_SECONDS[1])
            if not finished:
                time.sleep(pause)

    def _fill(self, todo: Iterator[Message], window: int) -> bool:
        """Send as many requests as the window has room for; return whether any is under way."""
        while len(self._pending) < window:
            waiting = self._repeats.next()
            if waiting is not None:
                self._push(waiting.repeat(), waiting.repeat, waiting.outcome)
                continue
            request = next(todo, None)
            if request is None:
                break
            self._push(request, self._again.of(request))
            del request
        return bool(self._pending)

    def _settle(self, entry: _Pending, outcome: Outcome) -> Outcome | None:
        """Return an outcome that is the last one, None if more is to come."""
        total = outcome.after(entry.before)
        if self._repeats.take(total, entry.repeat):
            return None
        found = self._joiner.take(total) if self._joiner is not None else total
        if isinstance(found, Outcome):
            return found
        self._push(found, renewed(found))
        return None

    def _last(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a node that is given up, with all that came before."""
        found = self._joiner.take(outcome) if self._joiner is not None else outcome
        return found if isinstance(found, Outcome) else outcome

    def _push(self, request: Message, repeat: Repeat, before: Outcome | None = None) -> None:
        node_id, size = request.metadata.dst_node_id, message_bytes(request)
        connected = self._activations.of(node_id) if self._activations else ""
        sent = time.monotonic()
        identifiers = list(self._grid.push_messages([request]))
        # A node that has just left gets no message id.
        message_id = identifiers[0] if identifiers and identifiers[0] else f"unsent-{id(repeat)}"
        asked = ExpectedReply(message_id, request.metadata, self._gate.most_bytes)
        self._pending[message_id] = _Pending(node_id, asked, size, sent, connected, repeat, before)

    def _poll(self, message_id: str, entry: _Pending) -> Outcome | None:
        if message_id.startswith("unsent-"):
            problem = "it left before it could be asked"
            return Outcome(entry.node_id, None, problem, 0, 0, 0.0, lost=True)
        arrived = pull_reply(self._grid, entry.asked, self._gate)
        seconds = time.monotonic() - entry.sent
        if arrived is not None:
            return self._answer(entry, arrived, seconds)
        problem = ""
        if seconds > self._timeout:
            problem = f"no reply within {self._timeout:g} s (`strategy.timeout`)"
        elif self._activations and self._activations.renewed(entry.node_id, entry.connected):
            problem = "it has started anew"
        if not problem:
            return None
        drop_reply(self._grid, entry.asked)
        lost = seconds <= self._timeout
        return Outcome(entry.node_id, None, problem, entry.bytes_down, 0, seconds, lost=lost)

    def _answer(self, entry: _Pending, arrived: ReceivedReply, seconds: float) -> Outcome:
        reply, size = arrived.message, arrived.size
        if reply is None or not reply.has_error():
            told = arrived.problem
            return Outcome(entry.node_id, reply, told, entry.bytes_down, size, seconds)
        code, problem = reply.error.code, _last_line(reply.error.reason)
        if code == _UNKNOWN and "ray" in (reply.error.reason or "").lower():
            raise WorkerDiedError(
                f"a simulation worker died and would swallow further messages ({problem}). Usually "
                "it ran out of memory: lower `federation.client_cpus` workers per machine, "
                "`pruner.seq_len` or `pruner.num_calibration_samples`."
            )
        early = seconds < _SHARE_OF_TIMEOUT * self._timeout
        return Outcome(
            node_id=entry.node_id,
            reply=None,
            problem=f"it failed: {problem} (Flower error {code})",
            bytes_down=entry.bytes_down,
            bytes_up=size,
            seconds=seconds,
            crashed=code == _APP_CRASHED,
            lost=code == _NODE_LOST or (code in _GONE_ON_THE_WAY and early),
        )


def _last_line(reason: str | None) -> str:
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return shown(lines[-1], 500) if lines else "no reason given"
