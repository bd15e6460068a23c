"""Flower's grid of a deployment, with replies taken object by object and counted as they come.

Flower cuts a message into objects and names them before any of them is sent. Its own grid then
takes them all, waits up to hours for what a node has not sent yet, and lets an exception out where
they make no message. Here a reply is refused as soon as it is seen to be too long, and one that is
not whole yet is left for later while others are served.
"""

from collections.abc import Iterable
from logging import WARNING
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.logger import log
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from strategies.assembly import Arriving, gone, names_of, whole
from strategies.inlet import Arrived, Asked, Gate, Guarded

_NAME_BYTES = 65  # every object but the first is named in another one, 64 characters and a comma
_FRAME_BYTES = 4_096  # around an object, as it comes over HTTP
_PUSHES = 5  # of one message: each brings the objects that the ones before have not brought


class _TooLongError(Exception):
    """More would come than a reply may have."""


def guarded(grid: Grid) -> Grid:
    """Return a grid that takes replies piece by piece where Flower's lets it.

    A simulation's grid, whose replies lie in this machine's memory already, comes back as it is.
    """
    return GuardedGrid(grid) if isinstance(grid, HttpGrid) else grid


class GuardedGrid(Guarded):
    """Flower's grid of a deployment behind a guard.

    Parameters
    ----------
    grid : HttpGrid
        Flower's own.
    """

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        self._arriving: dict[str, Arriving] = {}
        self._room = 0
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
        raise NotImplementedError("a guarded grid's replies are pulled one by one.")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Refuse, as :meth:`pull_messages`."""
        raise NotImplementedError("a guarded grid's replies are pulled one by one.")

    def drop(self, asked: Asked) -> None:
        """Forget what has come of an answer that nobody waits for any more."""
        arriving = self._arriving.pop(asked.message_id, None)
        if arriving is not None:
            self._confirm(arriving.message_id)

    def pull(self, asked: Asked, gate: Gate) -> Arrived | None:
        """Return the answer to a request, None if it is not whole yet."""
        if asked.message_id not in self._arriving:
            problem = self._announced(asked, gate)
            if problem is not None:
                return problem
        arriving = self._arriving.get(asked.message_id)
        if arriving is None:
            return None
        try:
            arrived = self._taken(arriving, asked)
        except _TooLongError:
            more = max(arriving.size + 1, asked.most_bytes + 1)
            arrived = Arrived(None, asked.too_long(more), arriving.size)
        if arrived is not None:
            self.drop(asked)
        return arrived

    def _announced(self, asked: Asked, gate: Gate) -> Arrived | None:
        """Ask the SuperLink for the reply; note its objects, or return why it is refused."""
        request = PullAppMessagesRequest(message_ids=[asked.message_id])
        found = self._client.PullMessages(request)
        refused = None
        for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            head = metadata_from_proto(proto.metadata)
            if head.reply_to_message_id != asked.message_id or asked.message_id in self._arriving:
                gate.turn_away()
                self._confirm(head.message_id)
                continue
            from_superlink = head.src_node_id == SUPERLINK_NODE_ID
            problem = "" if from_superlink else asked.misfit(head)
            names = names_of(tree)
            problem = problem or asked.too_long(_NAME_BYTES * (len(names) - 1))
            if problem:
                refused = Arrived(None, problem, 0)
                self._confirm(head.message_id)
            else:
                self._arriving[asked.message_id] = Arriving(head.message_id, from_superlink, names)
        return refused

    def _taken(self, arriving: Arriving, asked: Asked) -> Arrived | None:
        """Take what is there of a reply; return the whole, or why it is refused."""
        while arriving.left:
            name = arriving.left[-1]
            self._room = asked.most_bytes - arriving.size + _FRAME_BYTES
            request = PullObjectRequest(
                node=self._grid.node, run_id=self._grid.run.run_id, object_id=name
            )
            found = self._client.PullObject(request)
            if not found.object_found:
                return Arrived(gone(asked), "", arriving.size)
            if not found.object_available:
                return None
            arriving.size += len(found.object_content)
            if asked.too_long(arriving.size):
                raise _TooLongError
            arriving.contents[name] = found.object_content
            arriving.left.pop()
        return whole(arriving, asked)

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
            if length.isdecimal() and int(length) > self._room:
                raise _TooLongError
