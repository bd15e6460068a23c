"""What a reply must be to be taken as the answer to a request.

Flower's SuperLink checks what a SuperNode says of a reply, but hands on a message whose own head
the SuperNode wrote, too, of any size and to any request. We look at everything once more: of that
node, run, group and kind, once, and not longer than this model's can be. Without it: a node could
answer in another one's name, twice, or with more bytes than the server has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from logging import WARNING
from typing import Self

from flwr.app import Message, Metadata
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedprune.flower.messages import message_bytes

SHORT_REPLY_BYTES = 262_144
"""Bytes that suffice for every reply of a few figures or names."""


@dataclass(frozen=True)
class ExpectedReply:
    """A reply that is waited for, as far as it must fit its request."""

    request_id: str  # what Flower calls the request
    request: Metadata  # the request's head: whom it went to, and its run, group and kind
    most_bytes: int  # the most that the reply can have, known from the model

    def mismatch(self, head: Metadata) -> str:
        """Return why a head is not that of this request's reply; "" if it is."""
        for what, found, expected in (
            ("request", head.reply_to_message_id, self.request_id),
            ("node", head.src_node_id, self.request.dst_node_id),
            ("run", head.run_id, self.request.run_id),
            ("job", head.group_id, self.request.group_id),
            ("kind of message", head.message_type, self.request.message_type),
        ):
            if found != expected:
                return f"its reply says that it is of another {what} than the one it answers."
        return ""

    def refusal(self, message: Message, size: int) -> str:
        """Return why a whole message is refused; "" if it is not, as an error of Flower's."""
        if not message.has_content():
            return ""
        return self.mismatch(message.metadata) or self.too_long(size)

    def too_long(self, found: int) -> str:
        """Return why a reply of so many bytes, or more, is refused; "" if it is not."""
        if found <= self.most_bytes:
            return ""
        return (
            f"its reply has more bytes than this model's can have: {found} or more, "
            f"at most {self.most_bytes}."
        )


@dataclass(frozen=True)
class ReceivedReply:
    """What came as the answer to a request."""

    message: Message | None  # the reply, an error of Flower's included
    problem: str  # why it is refused; "" if there is a message
    size: int  # bytes received

    @classmethod
    def of(cls, message: Message, problem: str, size: int) -> Self:
        """Return a message, or why it is refused."""
        return cls(None if problem else message, problem, size)


def _tell_nobody(count: int) -> None:
    """Take no note."""


@dataclass
class ReplyLimits:
    """How long replies may be, and how many messages came that answer no request."""

    most_bytes: int = SHORT_REPLY_BYTES  # the most that a reply can have
    # told at the end how many messages answered no request, if any did
    on_strays: Callable[[int], None] = _tell_nobody
    _strays: int = 0

    def refuse_stray(self) -> None:
        """Count a message that answers no request; the first is logged."""
        if not self._strays:
            log(WARNING, "a message that answers no request of this run is refused")
        self._strays += 1

    def close(self) -> None:
        """Say how many answered no request."""
        if self._strays:
            self.on_strays(self._strays)
            self._strays = 0


class ReplyGrid(Grid):
    """A grid that takes one reply at a time and can refuse it before it is whole."""

    def pull_reply(self, expected: ExpectedReply, limits: ReplyLimits) -> ReceivedReply | None:
        """Return the answer to a request, None if it is not there yet."""
        raise NotImplementedError

    def drop_reply(self, expected: ExpectedReply) -> None:
        """Forget what has come of an answer that nobody waits for any more."""
        raise NotImplementedError


def pull_reply(grid: Grid, expected: ExpectedReply, limits: ReplyLimits) -> ReceivedReply | None:
    """Return the answer to a request, None if it is not there yet.

    `grid`: Flower's connection to the nodes: a deployment's object by object, or a simulation's.
    `expected`: what must come.
    """
    if isinstance(grid, ReplyGrid):
        return grid.pull_reply(expected, limits)
    received = None
    for message in grid.pull_messages([expected.request_id]):
        # What a simulation's own processes say of a failure need not tell what it answers.
        answers = message.has_error() or (
            message.metadata.reply_to_message_id == expected.request_id
        )
        if answers and received is None:
            size = message_bytes(message)
            received = ReceivedReply.of(message, expected.refusal(message, size), size)
        else:
            limits.refuse_stray()
    return received


def drop_reply(grid: Grid, expected: ExpectedReply) -> None:
    """Forget what has come of an answer that nobody waits for any more."""
    if isinstance(grid, ReplyGrid):
        grid.drop_reply(expected)
