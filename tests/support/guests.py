"""A registered node that speaks Flower's Fleet API itself, and sends what it likes."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    pull_and_inflate_object_from_tree,
)
from flwr.supernode.fleet_http_connection import http_request_response

from client_app.app import app
from tests.support.grid import become_server

_POLL_SECONDS = 0.3
_ONE_AT_A_TIME = threading.Lock()
_KNOWN: dict[str, RecordDict] = {}  # kind of request -> its answer


class Guest(threading.Thread):
    """A node that runs this project's ClientApp and changes what that answers.

    `ca`, `key`: the authority's certificate and the node's private key. `answer`: (guest, request,
    honest reply) -> sends something, by the methods below.
    """

    def __init__(
        self,
        address: str,
        ca: Path,
        key: Path,
        settings: Mapping[str, object],
        answer: Callable[["Guest", Message, Message], None],
    ) -> None:
        super().__init__(daemon=True)
        self._address, self._ca, self._settings, self._answer = address, ca, settings, answer
        private = load_ssh_private_key(key.read_bytes(), None)
        self._keys = (private, private.public_key())
        self.node_id = 0
        self.over = threading.Event()
        self.failure: BaseException | None = None
        self.refused: list[str] = []
        self.earlier: Message | None = None

    def run(self) -> None:
        """Answer until it is over."""
        try:
            with http_request_response(
                self._address, False, str(self._ca), self._keys, max_retries=2
            ) as connection:
                self.node_id, self._receive, self._send = connection[:3]
                self._pull, self._push, self._confirm = connection[5:]
                while not self.over.is_set():
                    self._serve()
        except BaseException as error:  # told to the test
            self.failure = error

    def _serve(self) -> None:
        found = self._receive()
        if found is None:
            time.sleep(_POLL_SECONDS)
            return
        head, tree = found
        run_id = head.metadata.run_id
        asked = pull_and_inflate_object_from_tree(
            tree, partial(self._pull, run_id), partial(self._confirm, run_id), return_type=Message
        )
        asked.metadata.__dict__["_message_id"] = head.metadata.message_id
        honest = self.of(asked, self._honest(asked))
        self._answer(self, asked, honest)
        self.earlier = self.earlier or honest

    def _honest(self, asked: Message) -> RecordDict:
        """Return what an honest node says; the work is done once for all guests of a process."""
        kind = asked.metadata.message_type
        with _ONE_AT_A_TIME:
            if kind not in _KNOWN:
                become_server()
                context = Context(1, self.node_id, dict(self._settings), RecordDict(), {})
                reply = app(asked, context)
                if reply.has_error():
                    raise RuntimeError(reply.error.reason)
                _KNOWN[kind] = reply.content
            content = RecordDict(dict(_KNOWN[kind]))
        if "report" in content:
            known = dict(content.config_records["report"])
            content["report"] = ConfigRecord(known | self._settings)
        return content

    def of(self, asked: Message, content: RecordDict | None, **forged: object) -> Message:
        """Return a reply to a request; ``forged`` is what its own head lies about."""
        become_server()
        reply = Message(content or RecordDict(), reply_to=asked)
        told = {"run_id": asked.metadata.run_id, "src_node_id": self.node_id, **forged}
        reply.metadata.__dict__.update({f"_{key}": value for key, value in told.items()})
        return reply

    def send(self, reply: Message, head: Message | None = None) -> None:
        """Send a reply as a SuperNode does; ``head`` is what the SuperLink looks at."""
        objects = {name: one.deflate() for name, one in get_all_nested_objects(reply).items()}
        self.send_objects(head or reply, objects, get_object_tree(reply))

    def send_objects(self, head: Message, objects: Mapping[str, bytes], tree: ObjectTree) -> None:
        """Announce any objects as a reply, and send those that there are."""
        run_id = head.metadata.run_id
        head = make_message(head.metadata, content=head.content)
        head.metadata.__dict__["_message_id"] = tree.object_id
        wanted, session = self._send(head, tree, 0.0)
        # The server may have refused it and let the SuperLink delete it before it is whole.
        with contextlib.suppress(ObjectPushError):
            for item in iterate_object_tree(tree):
                if item.object_id in wanted and item.object_id in objects:
                    self._push(run_id, session, item.object_id, objects[item.object_id])
