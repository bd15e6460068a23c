"""A SuperLink that knows one node, has nothing to do for it, and fails where it is told to."""

import contextlib
import threading
from collections.abc import Collection, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    DeactivateNodeResponse,
    PullMessagesResponse,
    RegisterNodeFleetResponse,
    UnregisterNodeFleetResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse

_ANSWERS = {
    "register-node": RegisterNodeFleetResponse(node_id=7),
    "activate-node": ActivateNodeResponse(node_id=7),
    "send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
    "pull-messages": PullMessagesResponse(),
    "deactivate-node": DeactivateNodeResponse(),
    "unregister-node": UnregisterNodeFleetResponse(),
}


class FakeSuperLink:
    """What it was asked, and where it listens.

    `calls`: names of the calls so far.
    """

    def __init__(self, failing: Collection[str]) -> None:
        self.failing = failing
        self.calls: list[str] = []
        self.address = ""


@contextlib.contextmanager
def fake_superlink(*failing: str) -> Iterator[FakeSuperLink]:
    """Serve the Fleet API in plain text; the calls named in ``failing`` get HTTP 500."""
    fake = FakeSuperLink(failing)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            name = self.path.rpartition("/")[2]
            fake.calls.append(name)
            body = b"" if name in fake.failing else _ANSWERS[name].SerializeToString()
            self.send_response(500 if name in fake.failing else 200)
            self.send_header("content-type", "application/protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.address = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
