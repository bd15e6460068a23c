"""A SuperLink in memory, as a ServerApp's grid sees it, whose nodes may send anything."""

import hashlib
from types import SimpleNamespace

import httpx
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid.http_grid import HttpGrid

RUN = 1


class Link:
    """What a ServerApp asks a SuperLink for, and what was asked.

    `objects`: name -> content; b"" where it was announced and has not come. `pulled`, `confirmed`:
    names that were asked for, and messages that may be deleted.
    """

    def __init__(self):
        self.objects: dict[str, bytes] = {}
        self.pulled: list[str] = []
        self.confirmed: list[str] = []
        self._replies: list[tuple[Message, ObjectTree]] = []

    def announce(self, head: Message, objects: dict[str, bytes], tree: ObjectTree) -> None:
        """Take a message of which the SuperLink has checked ``head`` only."""
        self.objects |= objects
        head.metadata.__dict__["_message_id"] = tree.object_id
        self._replies.append((head, tree))

    def send(self, reply: Message, head: Message | None = None) -> dict[str, bytes]:
        """Take a whole message, and return its objects."""
        objects = {name: one.deflate() for name, one in get_all_nested_objects(reply).items()}
        self.announce(head or reply, objects, get_object_tree(reply))
        return objects

    def PullMessages(self, request):
        found, self._replies = self._replies, []
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(message) for message, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PullObject(self, request):
        self.pulled.append(request.object_id)
        content = self.objects.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None,
            object_available=bool(content),
            object_content=content or b"",
        )

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


class LinkedGrid(HttpGrid):
    """Flower's grid of a deployment, with ``link`` in place of its client."""

    def __init__(self, link, run_id):
        self._link = link
        self._run = SimpleNamespace(run_id=run_id)
        self.node = Node(node_id=1)

    @property
    def run(self):
        return self._run

    @property
    def _runtime_client(self):
        return self._link


class LinkGrid(LinkedGrid):
    """The same on a :class:`Link`, to which requests need not be sent."""

    def __init__(self, link):
        super().__init__(link, RUN)

    def push_messages(self, messages):
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
        return [message.metadata.message_id for message in messages]


class WireLink(Link):
    """The same behind Flower's own HTTP client: objects come as the body of an answer."""

    def __init__(self):
        super().__init__()
        self.read = 0
        self._http = RuntimeHttpClient("http://superlink")
        self._http._client = httpx.Client(transport=httpx.MockTransport(self._answer))
        self._client = self._http._client

    def PullObject(self, request):
        return self._http.PullObject(request)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        asked = PullObjectRequest.FromString(request.content)
        body = super().PullObject(asked).SerializeToString()

        def pieces():
            for start in range(0, len(body), 1 << 16):
                piece = body[start : start + (1 << 16)]
                self.read += len(piece)
                yield piece

        return httpx.Response(200, headers={"content-length": str(len(body))}, content=pieces())


def named(content: bytes) -> tuple[str, bytes]:
    """Return an object's name and content."""
    return hashlib.sha256(content).hexdigest(), content
