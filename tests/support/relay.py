"""A network between a node and the SuperLink that can be slow or cut, and remembers."""

import contextlib
import socket
import threading
import time
from typing import Self

from tests.support.services import free_port

_PIECE = 4096
_POLL_SECONDS = 0.1


class Relay:
    """Passes TCP connections on to a port of the loopback interface.

    `rate`: bytes a second and direction; None: as fast as it goes. `cut`: whether nothing passes,
    while connections stay open: a cable that is unplugged. `sent`: what clients sent.
    """

    def __init__(self, port: int) -> None:
        self.rate: float | None = None
        self.cut = False
        self._port = port
        own = free_port()
        self.address = f"localhost:{own}"
        self._server = socket.create_server(("127.0.0.1", own))
        self._open: list[socket.socket] = []
        self.sent: list[bytearray] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in [self._server, *self._open]:
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    near.close()
                    continue
                self._open += [near, far]
                self.sent.append(bytearray())
                for ends in ((near, far, self.sent[-1]), (far, near, bytearray())):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                kept += data
                if self.rate:
                    time.sleep(len(data) / self.rate)
                while self.cut:
                    time.sleep(_POLL_SECONDS)
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
