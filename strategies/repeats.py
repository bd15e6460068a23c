"""Requests that a node could not answer, through no fault of its own: once more, now or later."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from logging import WARNING

from flwr.app import Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from strategies.outcome import Outcome

_MOST_RETURNS = 5  # without an answer: who is lost more often would hold the others up for ever
_LOOK_SECONDS = 0.5
# Between two looks. Longer ones were spent elsewhere, such as on a SuperLink that was away too.
_MOST_COUNTED_SECONDS = 5.0

Repeat = Callable[[], Message]
"""Builds a request once more."""


@dataclass(frozen=True)
class Again:
    """How requests are repeated.

    Parameters
    ----------
    message : Callable[[int], Message], optional
        Node id -> its request once more. Without it a request's content is kept until it is
        answered.
    rejoin : float
        Seconds that a lost node has to come back; 0: none is waited for.
    name : Callable[[int], str]
        Node id -> what log lines call it.
    """

    message: Callable[[int], Message] | None = None
    rejoin: float = 0.0
    name: Callable[[int], str] = "node {}".format

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
    """A request that is to be sent once more.

    Attributes
    ----------
    outcome : Outcome
        What came of the tries so far.
    repeat : Callable[[], Message]
        Builds it once more.
    since : float
        When its node was missed.
    left : float
        Seconds that the node has to come back.
    """

    outcome: Outcome
    repeat: Repeat
    since: float
    left: float


class Repeats:
    """Decides which requests of an exchange are sent once more, and when.

    A process that died at its work is asked again at once, one time: the kernel may have killed it
    for memory that another program needed. A node that is lost may come back under its id, and is
    asked then. Orders can be followed twice, and parcels taken twice.

    Parameters
    ----------
    grid : Grid
        Knows which nodes are there.
    again : Again
        How requests are repeated.
    clock : Callable
        Seconds from any origin.
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
        if outcome.reply is not None:
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
