"""Send requests in a window and hand out replies one by one.

`Grid.send_and_receive` holds every reply in memory and says nothing of nodes that stay silent.
Here at most `window` requests are under way, one reply is in hand at a time, and each request ends
in exactly one outcome: a reply or the reason why there is none.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedprune.errors import FedpruneError
from fedprune.records import message_bytes

# Error codes of Flower's replies that mean more than "this request failed".
_UNKNOWN = 0
_APP_CRASHED = 8
_POLL_SECONDS = (0.02, 0.5)


class WorkerDiedError(FedpruneError):
    """A simulation worker died; Flower never replaces it and it swallows later messages."""


@dataclass(frozen=True)
class Outcome:
    """The end of one request.

    Attributes
    ----------
    node_id : int
        Whom it was sent to.
    reply : Message or None
        The reply, if there is one to look at.
    problem : str
        Why there is none; "" if there is.
    bytes_down, bytes_up : int
        Serialised sizes of request and reply.
    seconds : float
        From handing over the request until the reply was in hand.
    crashed : bool
        Whether the process that worked on it died, while its node is well.
    """

    node_id: int
    reply: Message | None
    problem: str
    bytes_down: int
    bytes_up: int
    seconds: float
    crashed: bool = False


class Joiner(Protocol):
    """Puts together what comes in several messages."""

    def take(self, outcome: Outcome) -> Outcome | Message:
        """Return the outcome of the whole, or the request for what is still missing."""
        ...


@dataclass(frozen=True)
class _Pending:
    node_id: int
    bytes_down: int
    sent: float


def exchange(
    grid: Grid,
    requests: Iterable[Message],
    *,
    window: int,
    timeout: float,
    joiner: Joiner | None = None,
    again: Callable[[int], Message] | None = None,
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
    again : Callable[[int], Message], optional
        Node id -> its request once more. Asked for once where a node's process dies at its work:
        the kernel may have killed it for memory that another program needed.

    Raises
    ------
    WorkerDiedError
        If a simulation worker died.
    """
    todo = iter(requests)
    pending: dict[str, _Pending] = {}
    repeated: set[int] = set()
    pause, exhausted = _POLL_SECONDS[0], False
    while True:
        while not exhausted and len(pending) < window:
            request = next(todo, None)
            if request is None:
                exhausted = True
            else:
                message_id, entry = _push(grid, request)
                pending[message_id] = entry
                del request
        if not pending:
            return
        finished = False
        for message_id in list(pending):
            outcome = _poll(grid, message_id, pending[message_id], timeout)
            if outcome is None:
                continue
            finished = True
            del pending[message_id]
            found = joiner.take(outcome) if joiner is not None else outcome
            if again is not None and outcome.crashed and outcome.node_id not in repeated:
                repeated.add(outcome.node_id)
                found = again(outcome.node_id)
            del outcome
            if isinstance(found, Message):
                message_id, entry = _push(grid, found)
                pending[message_id] = entry
            else:
                yield found
            del found
        pause = _POLL_SECONDS[0] if finished else min(pause * 1.3, _POLL_SECONDS[1])
        if pending and not finished:
            time.sleep(pause)


def _push(grid: Grid, request: Message) -> tuple[str, _Pending]:
    size = message_bytes(request)
    sent = time.monotonic()
    identifiers = list(grid.push_messages([request]))
    # A node that has just left gets no message id; the poll then finds nothing and times out.
    message_id = identifiers[0] if identifiers and identifiers[0] else f"unsent-{id(request)}"
    return message_id, _Pending(request.metadata.dst_node_id, size, sent)


def _poll(grid: Grid, message_id: str, entry: _Pending, timeout: float) -> Outcome | None:
    if message_id.startswith("unsent-"):
        return Outcome(entry.node_id, None, "it left before it could be asked", 0, 0, 0.0)
    replies = list(grid.pull_messages([message_id]))
    seconds = time.monotonic() - entry.sent
    if not replies:
        if seconds <= timeout:
            return None
        problem = f"no reply within {timeout:g} s (`strategy.timeout`)"
        return Outcome(entry.node_id, None, problem, entry.bytes_down, 0, seconds)
    reply = replies[0]
    size = message_bytes(reply)
    if not reply.has_error():
        return Outcome(entry.node_id, reply, "", entry.bytes_down, size, seconds)
    problem = _last_line(reply.error.reason)
    if reply.error.code == _UNKNOWN and "ray" in (reply.error.reason or "").lower():
        raise WorkerDiedError(
            f"a simulation worker died and would swallow further messages ({problem}). Usually it "
            "ran out of memory: lower `federation.client_cpus` workers per machine, "
            "`pruner.seq_len` or `pruner.num_calibration_samples`."
        )
    problem = f"it failed: {problem} (Flower error {reply.error.code})"
    crashed = reply.error.code == _APP_CRASHED
    return Outcome(entry.node_id, None, problem, entry.bytes_down, size, seconds, crashed)


def _last_line(reason: str | None) -> str:
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason given"
