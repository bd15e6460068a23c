"""Flower's grid of a deployment, taking replies object by object.

Flower cuts a message into objects and names them before any of them is sent. Its own grid then
takes them all, waits up to hours for what a node has not sent yet, lets an exception out where they
make no message, and gives up a request that the SuperLink did not take whole. Here a reply is
refused as soon as it is seen to be too long, one that is not whole yet is left for later while
others are served, and a request is sent again. Without it: one node could hold up a run, fill the
server's memory, or end the ServerApp with a reply that is no message; and so could a SuperLink that
starts anew in the middle of a request.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any

import httpx
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.logger import log
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from fedprune.flower.messages import set_message_id
from fedprune.flower.replies import (
    ExpectedReply,
    ReceivedReply,
    ReplyGrid,
    ReplyLimits,
)

_NAME_BYTES = 65  # every object but the first is named in another one, 64 characters and a comma
_FRAME_BYTES = 4_096  # around an object, as it comes over HTTP
_PUSHES = 5  # of one message: each brings the objects that the ones before have not brought
_RECORD_BYTES = 4_000_000  # of all objects that are not pieces of arrays: they grow when read
# What a SuperNode says itself; the other codes are the SuperLink's words about it.
_NODES_CODES = (
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.INVALID_FAB,
    ErrorCode.CLIENT_APP_CRASHED,
)


class _TooLongError(Exception):
    """More would come than a reply may have."""


@dataclass
class _PartialReply:
    """A reply that was announced: its objects' names, the last sent first, and what has come."""

    message_id: str
    from_superlink: bool
    left: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


def object_grid(grid: Grid) -> Grid:
    """Return a grid that takes replies piece by piece where Flower's lets it.

    A simulation's grid, whose replies lie in this machine's memory already, comes back as it is.
    """
    return ObjectGrid(grid) if isinstance(grid, HttpGrid) else grid


class ObjectGrid(ReplyGrid):
    """Flower's grid of a deployment, taking replies object by object."""

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        self._partial: dict[str, _PartialReply] = {}
        self._most_bytes = 0
        self._hooked: httpx.Client | None = None

    def set_run(self, run: Run) -> None:
        """Set the run, as Flower does."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message, as Flower's deprecated function does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes' numbers."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return what is known of the nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids.

        A SuperLink that dies between storing an object and saying so is sent the object again, and
        refuses it as one that it does not wait for. Sending the message anew is safe: its id is
        the hash of what it says, so the SuperLink knows it and names only what is missing.
        """
        sent = list(messages)
        for _ in range(_PUSHES - 1):
            try:
                return self._grid.push_messages(sent)
            except ObjectPushError:
                log(WARNING, "The SuperLink did not take a part of a request; it is sent again")
        return self._grid.push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: without its request no reply can be checked."""
        raise NotImplementedError("this grid's replies are pulled one by one.")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Refuse, as :meth:`pull_messages`."""
        raise NotImplementedError("this grid's replies are pulled one by one.")

    def drop_reply(self, expected: ExpectedReply) -> None:
        """Forget what has come of an answer that nobody waits for any more."""
        partial = self._partial.pop(expected.request_id, None)
        if partial is not None:
            self._confirm(partial.message_id)

    def pull_reply(self, expected: ExpectedReply, limits: ReplyLimits) -> ReceivedReply | None:
        """Return the answer to a request, None if it is not whole yet."""
        if expected.request_id not in self._partial:
            problem = self._announce(expected, limits)
            if problem is not None:
                return problem
        partial = self._partial.get(expected.request_id)
        if partial is None:
            return None
        try:
            received = self._take(partial, expected)
        except _TooLongError:
            more = max(partial.size + 1, expected.most_bytes + 1)
            received = ReceivedReply(None, expected.too_long(more), partial.size)
        if received is not None:
            self.drop_reply(expected)
        return received

    def _announce(self, expected: ExpectedReply, limits: ReplyLimits) -> ReceivedReply | None:
        """Ask the SuperLink for the reply; note its objects, or return why it is refused."""
        request = PullAppMessagesRequest(message_ids=[expected.request_id])
        found = self._client.PullMessages(request)
        refused = None
        for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            head = metadata_from_proto(proto.metadata)
            if (
                head.reply_to_message_id != expected.request_id
                or expected.request_id in self._partial
            ):
                limits.refuse_stray()
                self._confirm(head.message_id)
                continue
            from_superlink = head.src_node_id == SUPERLINK_NODE_ID
            problem = "" if from_superlink else expected.mismatch(head)
            names = _object_names(tree)
            problem = problem or expected.too_long(_NAME_BYTES * (len(names) - 1))
            if problem:
                refused = ReceivedReply(None, problem, 0)
                self._confirm(head.message_id)
            else:
                self._partial[expected.request_id] = _PartialReply(
                    head.message_id, from_superlink, names
                )
        return refused

    def _take(self, partial: _PartialReply, expected: ExpectedReply) -> ReceivedReply | None:
        """Take what is there of a reply; return the whole, or why it is refused."""
        while partial.left:
            name = partial.left[-1]
            self._most_bytes = expected.most_bytes - partial.size + _FRAME_BYTES
            request = PullObjectRequest(
                node=self._grid.node, run_id=self._grid.run.run_id, object_id=name
            )
            found = self._client.PullObject(request)
            if not found.object_found:
                return ReceivedReply(_gone(expected), "", partial.size)
            if not found.object_available:
                return None
            partial.size += len(found.object_content)
            if expected.too_long(partial.size):
                raise _TooLongError
            partial.contents[name] = found.object_content
            partial.left.pop()
        return _message_of(partial, expected)

    def _confirm(self, message_id: str) -> None:
        """Let the SuperLink delete a message and its objects."""
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node,
                run_id=self._grid.run.run_id,
                message_object_id=message_id,
            )
        )

    @property
    def _client(self) -> Any:
        """Flower's client, which tells of each answer's length before it is read."""
        client = self._grid._runtime_client
        plain = getattr(client, "_client", None)
        if isinstance(plain, httpx.Client) and plain is not self._hooked:
            hooks = plain.event_hooks
            plain.event_hooks = {**hooks, "response": [*hooks["response"], self._check_length]}
            self._hooked = plain
        elif plain is None and self._hooked is None:
            log(WARNING, "Flower's client is another one: replies are measured after receipt only")
            self._hooked = httpx.Client()
        return client

    def _check_length(self, response: httpx.Response) -> None:
        if response.url.path.endswith("/pull-object"):
            length = response.headers.get("content-length", "")
            if length.isdecimal() and int(length) > self._most_bytes:
                raise _TooLongError


def _gone(expected: ExpectedReply) -> Message:
    """Return the error that Flower's own grid makes of a reply whose objects are not there."""
    head = expected.request
    told = Metadata(
        run_id=head.run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=expected.request_id,
        group_id=head.group_id,
        created_at=head.created_at,
        ttl=head.ttl,
        message_type=head.message_type,
    )
    reason = "its reply was not sent whole in time"
    return make_message(told, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


def _object_names(tree: ObjectTree) -> list[str]:
    """Return the names of a message's objects, each once, in the order in which they are sent."""
    return list(dict.fromkeys(item.object_id for item in iterate_object_tree(tree)))


def _message_of(partial: _PartialReply, expected: ExpectedReply) -> ReceivedReply:
    """Make the message of its objects, which a stranger may have written."""
    size = partial.size
    try:
        problem = expected.too_long(_expanded(partial.contents))
        if problem:
            return ReceivedReply(None, problem, size)
        message = inflate_object_from_contents(partial.message_id, partial.contents)
        if not isinstance(message, Message):
            return ReceivedReply(None, "its reply is no message.", size)
        set_message_id(message, partial.message_id)  # as Flower's grid does
        problem = expected.refusal(message, size)
        if message.has_error() and not partial.from_superlink:
            problem = _nodes_error(message, expected)
        return ReceivedReply.of(message, problem, size)
    except Exception as error:  # Flower's parsers raise whatever they stumble over
        return ReceivedReply(None, f"its reply cannot be read ({type(error).__name__}).", size)


def _nodes_error(message: Message, expected: ExpectedReply) -> str:
    """Return why an error that a node sent is refused; "" if it is not."""
    if message.error.code not in _NODES_CODES:
        return "its reply is an error that no node has."
    return expected.mismatch(message.metadata)


def _expanded(contents: dict[str, bytes]) -> int:
    """Return the bytes that objects will have as arrays, where a piece may be named repeatedly."""
    heads = {name: get_object_head_values_from_object_content(c) for name, c in contents.items()}
    records = sum(len(contents[name]) for name, head in heads.items() if head[0] != "ArrayChunk")
    if records > _RECORD_BYTES:
        raise ValueError("records are longer than any reply's.")
    total = records
    for name, (kind, children, length) in heads.items():
        if kind == "Array":
            body = json.loads(contents[name][-length:]) if length else {}
            total += sum(heads[children[place]][2] for place in body["arraychunk_ids"])
    return total
