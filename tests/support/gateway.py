"""The gateway as a process before a federation's SuperLink, and questions of an outsider."""

import contextlib
import json
import shutil
import socket
import ssl
from collections import Counter
from pathlib import Path

from tests.support.certificates import server_certificate
from tests.support.federation import Federation
from tests.support.services import Service, listens, until

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker" / "gateway"
PATH = "/usr/sbin:/usr/local/sbin"


def missing() -> str:
    """Return why there can be no gateway here; "" if there can."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path=PATH)
    if nginx and shutil.which("envsubst"):
        return ""
    return "nginx or envsubst is not installed; `make nginx` installs them"


class Gateway:
    """nginx between nodes and a SuperLink.

    `service`: the process, as a container would run it.
    """

    def __init__(
        self, federation: Federation, port: int, name: str = "gateway", **settings: str
    ) -> None:
        self.port = port
        self._federation, self._name = federation, name
        folder = federation.folder / name
        environment = federation.environment_in(folder)
        self.renew()
        environment |= {
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "GATEWAY_SUPERLINK": federation.address,
            "GATEWAY_CERTIFICATE": str(self.certificate),
            "GATEWAY_KEY": str(self.key),
            "GATEWAY_CA": str(federation.ca.path),
            **settings,
        }
        command = ["sh", str(FOLDER / "start.sh")]
        self.service: Service = federation.service(name, command, environment)

    @property
    def health(self) -> str:
        """Where it answers whether the SuperLink does."""
        return f"https://localhost:{self.port}/health"

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.service.start()
        until(lambda: listens(self.port), 180, f"the gateway listens\n{self.service.log}")

    def renew(self, expired: bool = False) -> None:
        """Make a new certificate where it looks for one."""
        folder, issuer = self._federation.certificates, self._federation.ca
        self.certificate, self.key = server_certificate(folder, issuer, self._name, expired=expired)

    def refusals(self) -> list[dict[str, str]]:
        """Return the lines of its log that tell of a refusal."""
        lines = self.service.log.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def refused(self) -> Counter[str]:
        """Return how many were refused, by reason."""
        return Counter(line["reason"] for line in self.refusals())

    def counted(self, kind: str, count: int) -> None:
        """Wait until it has told of so many of a kind."""
        until(
            lambda: self.refused()[kind] >= count,
            60,
            f"{count} refused for '{kind}': {self.refused()}\n{self.service.log}",
        )

    def context(self) -> ssl.SSLContext:
        """Return how a node trusts it."""
        return ssl.create_default_context(cafile=str(self._federation.ca.path))

    def connect(self) -> ssl.SSLSocket:
        """Return a new connection with TLS."""
        plain = socket.create_connection(("127.0.0.1", self.port), 10)
        return self.context().wrap_socket(plain, server_hostname="localhost")

    def ask(self, sent: bytes) -> tuple[int, bytes]:
        """Send bytes and return the answer's status and body; status 0 if there is no answer."""
        with self.connect() as connection:
            return answer(connection, sent)


def answer(connection: socket.socket, sent: bytes, count: int = 1) -> tuple[int, bytes]:
    """Send bytes and read until the other side closes or has sent so many empty answers."""
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
        connection.sendall(sent)
        while part := connection.recv(65536):
            received += part
            if received.lower().count(b"content-length: 0\r\n") == count:
                break
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 else 0), body


def request(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    """Return a request whose answer ends the connection."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if not any(line.startswith(("Content-Length", "Transfer-Encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
