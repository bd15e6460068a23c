"""A wire that remembers: everything that a client sends to a server goes through it."""

import contextlib
import socket
import threading
from typing import Self

_CHUNK = 1 << 16


class Recorder:
    """Forwards connections on the loopback interface and keeps what clients send."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sent: list[bytearray] = []

    @property
    def sent(self) -> list[bytes]:
        """What each connection has sent."""
        return [bytes(one) for one in self._sent]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._port))
        except OSError:
            client.close()
            return
        kept = bytearray()
        self._sent.append(kept)
        back = threading.Thread(target=_pass_on, args=(server, client, bytearray()), daemon=True)
        back.start()
        _pass_on(client, server, kept)


def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            kept += data
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
