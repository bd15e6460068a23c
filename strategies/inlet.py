"""Take one reply from Flower, and only what answers the request: of that node, run and job, once.

Flower's SuperLink checks what a SuperNode says of a reply, but hands on a message whose own head
the SuperNode wrote, too, and of any size. So everything is looked at here once more.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import WARNING

from flwr.app import Message, Metadata
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedprune.records import message_bytes

SHORT_REPLY = 262_144
"""Bytes that suffice for every reply of a few figures or names."""


@dataclass(frozen=True)
class Asked:
    """A request that is under way, as far as its reply must fit.

    Attributes
    ----------
    message_id : str
        What Flower calls the request.
    head : Metadata
        The request's own: whom it went to, and its run, job and kind.
    most_bytes : int
        The most that the reply can have, known from the model.
    """

    message_id: str
    head: Metadata
    most_bytes: int

    def misfit(self, head: Metadata) -> str:
        """Return why a head is not that of this request's reply; "" if it is."""
        for what, found, expected in (
            ("request", head.reply_to_message_id, self.message_id),
            ("node", head.src_node_id, self.head.dst_node_id),
            ("run", head.run_id, self.head.run_id),
            ("job", head.group_id, self.head.group_id),
            ("kind of message", head.message_type, self.head.message_type),
        ):
            if found != expected:
                return f"its reply says that it is of another {what} than the one it answers."
        return ""

    def too_long(self, found: int) -> str:
        """Return why a reply of so many bytes, or more, is refused; "" if it is not."""
        if found <= self.most_bytes:
            return ""
        return (
            f"its reply has more bytes than this model's can have: {found} or more, "
            f"at most {self.most_bytes}."
        )


@dataclass(frozen=True)
class Arrived:
    """What came as the answer to a request.

    Attributes
    ----------
    message : Message or None
        The reply, an error of Flower's included.
    problem : str
        Why it is refused; "" if there is a message.
    size : int
        Bytes received.
    """

    message: Message | None
    problem: str
    size: int


def _tell_nobody(count: int) -> None:
    """Take no note."""


@dataclass
class Gate:
    """What an exchange lets in, and how many messages it turned away that nobody asked for.

    Parameters
    ----------
    most_bytes : int
        The most that a reply can have.
    note : Callable[[int], None]
        Told at the end of the exchange how many messages answered no request, if any did.
    """

    most_bytes: int = SHORT_REPLY
    note: Callable[[int], None] = _tell_nobody
    _strays: int = 0

    def turn_away(self) -> None:
        """Count a message that answers no request; the first is logged."""
        if not self._strays:
            log(WARNING, "a message that answers no request of this run is refused")
        self._strays += 1

    def close(self) -> None:
        """Say how many were turned away."""
        if self._strays:
            self.note(self._strays)
            self._strays = 0


class Guarded(Grid):
    """A grid that takes replies piece by piece, and so can refuse one before it is whole."""

    def pull(self, asked: Asked, gate: Gate) -> Arrived | None:
        """Return the answer to a request, None if it is not there yet."""
        raise NotImplementedError

    def drop(self, asked: Asked) -> None:
        """Forget what has come of an answer that nobody waits for any more."""
        raise NotImplementedError


def pull(grid: Grid, asked: Asked, gate: Gate) -> Arrived | None:
    """Return the answer to a request, None if it is not there yet.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes, guarded or one inside this machine.
    asked : Asked
        The request.
    gate : Gate
        Counts what answers no request.
    """
    if isinstance(grid, Guarded):
        return grid.pull(asked, gate)
    return _first(grid.pull_messages([asked.message_id]), asked, gate)


def drop(grid: Grid, asked: Asked) -> None:
    """Forget what has come of an answer that nobody waits for any more."""
    if isinstance(grid, Guarded):
        grid.drop(asked)


def _first(found: Iterable[Message], asked: Asked, gate: Gate) -> Arrived | None:
    arrived = None
    for message in found:
        # What a simulation's own processes say of a failure need not tell what it answers.
        answers = message.has_error() or message.metadata.reply_to_message_id == asked.message_id
        if answers and arrived is None:
            arrived = checked(message, asked, message_bytes(message))
        else:
            gate.turn_away()
    return arrived


def checked(message: Message, asked: Asked, size: int) -> Arrived:
    """Return a whole message as the answer to a request, or why it is refused."""
    problem = ""
    if message.has_content():
        problem = asked.misfit(message.metadata) or asked.too_long(size)
    return Arrived(None if problem else message, problem, size)
