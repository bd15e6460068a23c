"""A real gateway before a real SuperLink: nodes get in, and nobody else gets anywhere."""

import hashlib
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

import psutil
import pytest

from tests.support.certificates import node_key
from tests.support.federation import CONNECTION, Federation
from tests.support.gateway import FOLDER, Gateway, answer, missing, request
from tests.support.services import free_port, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing()), reason=missing() or "nginx is installed"),
]

SIGNED = ("flwr-public-key: eA==", "flwr-timestamp: now", "flwr-signature: eA==")
PROTOBUF = "Content-Type: application/protobuf"
START_RUN = "/v1/control/start-run"
_PROJECT = """
[project]
name = "tiny-app"
version = "0.1.0"
license = "Apache-2.0"
dependencies = ["flwr>=1.41.0,<1.42"]

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "tiny_server:app"
clientapp = "tiny_client:app"

[tool.flwr.app.config]
journal = ""
bytes = 0
"""
_CLIENT = """
import random
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    size = context.run_config["bytes"]
    data = random.Random(7).randbytes(size)
    array = Array(dtype="uint8", shape=(size,), stype="raw", data=data)
    return Message(RecordDict({"arrays": ArrayRecord({"big": array})}), reply_to=message)
"""
_SERVER = """
import hashlib, pathlib, time
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    replies = grid.send_and_receive([Message(RecordDict(), nodes[0], "train")], timeout=600)
    data = list(replies)[0].content["arrays"]["big"].data
    journal = pathlib.Path(context.run_config["journal"])
    journal.write_text(hashlib.sha256(data).hexdigest())
"""


@dataclass
class Site:
    """A federation of one node that reaches its SuperLink through the gateway."""

    federation: Federation
    gateway: Gateway

    def control_calls(self) -> int:
        """How often the SuperLink was asked for its Control API, by its own log."""
        return len(re.findall(r'"[A-Z]+ \S*/control/', self.federation.superlink.log))

    def strangers(self) -> int:
        """How many requests the SuperLink's log has that neither nodes nor executors send."""
        lines = re.findall(r'"([A-Z]+ \S+) HTTP', self.federation.superlink.log)
        usual = re.compile(r"POST /v1/(?:fleet|runtime)/[a-z-]+|(?:GET|HEAD) /health")
        return sum(not usual.fullmatch(line) for line in lines)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    port = free_port()
    folder = tmp_path_factory.mktemp("site")
    federation = Federation(folder, nodes=1, fleet=[f"localhost:{port}"], supernode=["--any-app"])
    gateway = Gateway(federation, port, GATEWAY_HEADER_SECONDS="2", GATEWAY_BODY_SECONDS="2")
    try:
        gateway.service.start()
        with federation:
            yield Site(federation, gateway)
    finally:
        gateway.service.kill()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apps") / "tiny-app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(_PROJECT)
    (folder / "tiny_client.py").write_text(_CLIENT)
    (folder / "tiny_server.py").write_text(_SERVER)
    return folder


def another(site: Site, name: str, **settings: str) -> Gateway:
    """Return a further gateway before the same SuperLink, with a log of its own."""
    federation = site.federation
    return Gateway(federation, free_port(), name=name, **settings)


def master(gateway: Gateway) -> psutil.Process:
    """Return nginx's first process, which a container would run."""
    found = gateway.service.processes()
    return next(one for one in found if "master process" in " ".join(one.cmdline()))


@pytest.mark.parametrize("size", [12_000_000, pytest.param(100 * 2**20, marks=pytest.mark.faults)])
def test_a_node_gets_through_and_a_large_reply_with_it(site, app, tmp_path, size):
    journal = tmp_path / "journal"
    config = f'journal="{journal}" bytes={size}'
    before = site.gateway.refusals()
    run = site.federation.flwr("run", str(app), CONNECTION, "--run-config", config, "--stream")
    assert journal.exists(), run.stdout + run.stderr + site.federation.logs()
    expected = hashlib.sha256(random.Random(7).randbytes(size)).hexdigest()
    assert journal.read_text() == expected
    # Honest traffic is not told.
    assert site.gateway.refusals() == before
    assert "push-object" not in site.gateway.service.log


def test_an_outsider_with_flower_s_command_line_gets_nowhere(site, app, tmp_path):
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "door"\n\n[superlink.door]\n'
        f'address = "localhost:{site.gateway.port}"\n'
        f'root-certificates = "{site.federation.ca.path}"\n'
    )
    environment = site.federation.environment | {"FLWR_HOME": str(tmp_path)}
    before, calls = site.gateway.refused(), site.control_calls()
    commands = (["run", str(app), "door"], ["list", "door"], ["stop", "1", "door"])
    for words in commands:
        done = subprocess.run(
            ["flwr", *words], env=environment, cwd=tmp_path, capture_output=True, timeout=300
        )
        assert done.returncode != 0, done.stdout
    site.gateway.counted("control", before["control"] + len(commands))
    assert site.control_calls() == calls
    # The same question from within shows that it would have been seen.
    site.federation.listed()
    assert site.control_calls() == calls + 1
    told = site.gateway.refusals()[-1]
    assert told["address"] == "127.0.0.1" and told["status"] == "403"
    assert datetime.fromisoformat(told["time"]).utcoffset() == timedelta(0)
    assert set(told) == {"time", "address", "status", "reason"}


@pytest.mark.parametrize(
    "sent",
    [
        request("POST", START_RUN),
        request("POST", START_RUN, *SIGNED, PROTOBUF),
        request("POST", "/v1/fleet/../control/start-run", *SIGNED),
        request("POST", "/v1/fleet/pull-messages/../../control/start-run", *SIGNED),
        request("POST", "/v1/control/start-run/../../fleet/pull-messages", *SIGNED),
        request("POST", "/v1/control/start-run%3F/../../fleet/pull-messages", *SIGNED),
        request("POST", "/v1/control/start-run#/../../fleet/pull-messages", *SIGNED),
        request("POST", "/v1/control/start-run?/v1/fleet/pull-messages", *SIGNED),
        request("POST", "/v1/fleet/pull-messages?/../../control/start-run", *SIGNED),
        request("POST", "/v1/fleet/%2e%2e/control/start-run", *SIGNED),
        request("POST", "/v1/fleet/%252e%252e/control/start-run", *SIGNED),
        request("POST", "/v1/fleet/..%2fcontrol/start-run", *SIGNED),
        request("POST", "/v1/fleet/..%5ccontrol/start-run", *SIGNED),
        request("POST", "/v1/fleet/..\\control/start-run", *SIGNED),
        request("POST", "/v1/fleet/..;/control/start-run", *SIGNED),
        request("POST", "/v1/fleet;/../control/start-run", *SIGNED),
        request("POST", "/v1/fleet/./pull-messages", *SIGNED),
        request("POST", "/v1/fleet//pull-messages", *SIGNED),
        request("POST", "/v1/fleet/pull-messages/", *SIGNED),
        request("POST", "/v1/fleet/pull-messages;x=1", *SIGNED),
        request("POST", "/v1/fleet/pull-messages%00", *SIGNED),
        request("POST", "/v1/fleet/pull%2dmessages", *SIGNED),
        request("POST", "/V1/Fleet/pull-messages", *SIGNED),
        request("POST", "/V1/Control/start-run", *SIGNED),
        request("POST", "//v1/control/start-run", *SIGNED),
        request("POST", "/v1//control/start-run", *SIGNED),
        request("POST", "https://superlink:8000/v1/control/start-run", *SIGNED),
        request("POST", "http://localhost/v1/runtime/acquire-task", *SIGNED),
        request("POST", "/v1/runtime/acquire-task", *SIGNED),
        request("POST", "/v1/responses", *SIGNED),
        request("POST", "/v1/fleet/", *SIGNED),
        request("POST", "/v1/fleet/unregister-node", *SIGNED),
        request("GET", "/v1/fleet/pull-messages", *SIGNED),
        request("PUT", "/v1/fleet/pull-messages", *SIGNED),
        request("POST", "/health"),
        request("GET", "/health?x"),
        request("GET", "/health/../v1/control/list-runs"),
        request("GET", "/docs"),
        request("GET", "/openapi.json"),
        request("GET", "/"),
        request("OPTIONS", "*"),
        request("TRACE", "/health"),
        request("CONNECT", "superlink:8000"),
        request("POST", START_RUN, "X-Original-URL: /v1/fleet/pull-messages"),
        request(
            "POST", "/v1/fleet/x", f"X-Rewrite-URL: {START_RUN}", "X-HTTP-Method-Override: POST"
        ),
        request("GET", START_RUN, "Connection: Upgrade", "Upgrade: websocket"),
        request("POST", START_RUN, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
        request("POST", "/v1/fleet/pull-messages", *SIGNED, "Transfer-Encoding: chunked")
        + b"0\r\n\r\n",
        request("POST", "/v1/fleet/pull-messages", *SIGNED, "Transfer-Encoding: chunked").replace(
            b"chunked", b"chunked\r\nContent-Length: 4"
        )
        + b"0\r\n\r\nPOST /v1/control/start-run HTTP/1.1\r\n\r\n",
        request("POST", "/v1/fleet/pull-messages", "Content-Length: 1", "Content-Length: 2"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/control/start-run HTTP/0.9\r\n\r\n",
        b"POST /v1/control/start-run HTTP/9.9\r\n\r\n",
        b"\x00\x01garbage\r\n\r\n",
        b"A" * 3000 + b" / HTTP/1.1\r\n\r\n",
    ],
)
def test_no_trick_gets_past(site, sent):
    before = site.strangers()
    status, body = site.gateway.ask(sent)
    assert (status, body) == (403, b"")
    assert site.strangers() == before


def test_a_target_without_end_is_cut_off(site):
    before = site.gateway.refused()
    status, body = site.gateway.ask(b"GET " + b"/a" * 20_000 + b" HTTP/1.1\r\n\r\n")
    # The connection may be gone before the answer is read.
    assert status in (0, 403) and body == b""
    site.gateway.counted("other", before["other"] + 1)


def test_a_target_that_is_allowed_brings_no_headers_of_its_own(site):
    """Health is answered whatever else is claimed, and nothing is switched to another protocol."""
    for headers in (
        ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        [f"X-Original-URL: {START_RUN}", f"X-Forwarded-Prefix: {START_RUN}"],
        ["Host: superlink:8000", "X-Forwarded-For: 127.0.0.1"],
    ):
        sent = request("GET", "/health", *headers)
        if "Host" in headers[0]:
            sent = sent.replace(b"Host: localhost\r\n", b"")
        assert site.gateway.ask(sent) == (200, b"")


def test_pipelined_requests_are_judged_one_by_one(site):
    first = request("GET", "/health").replace(b"Connection: close\r\n", b"")
    with site.gateway.connect() as connection:
        _, rest = answer(connection, first + request("POST", START_RUN), count=2)
    assert rest.startswith(b"HTTP/1.1 403 ")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_whoever_speaks_no_tls_is_cut_off_and_counted(site):
    before = site.gateway.refused()
    for sent in (request("GET", "/health"), request("POST", START_RUN), b"SSH-2.0-x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", site.gateway.port), 10) as plain:
            assert b"200" not in bytes(str(answer(plain, sent)), "ascii")
    with socket.create_connection(("127.0.0.1", site.gateway.port), 10) as plain:
        assert answer(plain, b"\x16\x03\x01" + b"garbage" * 40) == (0, b"")
    distrustful = ssl.create_default_context()
    with (
        socket.create_connection(("127.0.0.1", site.gateway.port), 10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        distrustful.wrap_socket(plain, server_hostname="localhost")
    old = site.gateway.context()
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", site.gateway.port), 10) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(plain, server_hostname="localhost")
    site.gateway.counted("plain", before["plain"] + 3)
    site.gateway.counted("tls", before["tls"] + 3)


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(site):
    before = site.gateway.refused()
    for name, size in (
        ("push-object", 5_308_417),
        ("push-messages", 2**21 + 1),
        ("get-fab", 20_000),
    ):
        target = f"/v1/fleet/{name}"
        head = request("POST", target, *SIGNED, PROTOBUF, f"Content-Length: {size}")
        assert site.gateway.ask(head) == (413, b"")
    site.gateway.counted("too-large", before["too-large"] + 3)


def test_whoever_dribbles_is_cut_off(site):
    before, calls = site.gateway.refused(), site.federation.superlink.log.count("push-object")
    head = request("POST", "/v1/fleet/push-object", *SIGNED, PROTOBUF, "Content-Length: 5000000")
    starts = (b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: lo", head + b"x" * 1000)
    connections = [site.gateway.connect() for _ in starts]
    for connection, start in zip(connections, starts, strict=True):
        connection.sendall(start)
    with socket.create_connection(("127.0.0.1", site.gateway.port), 10) as silent:
        for connection in connections:
            assert answer(connection, b"")[0] in (0, 408)
        assert answer(silent, b"") == (0, b"")
    site.gateway.counted("slow", before["slow"] + 3)
    assert site.federation.superlink.log.count("push-object") == calls


@pytest.mark.faults
def test_an_unknown_key_and_no_key_are_refused_and_counted(site, tmp_path):
    before = site.gateway.refused()
    online = site.federation.online()
    key, _ = node_key(tmp_path, "stranger")
    command = ["flower-supernode", "--root-certificates", str(site.federation.ca.path)]
    command += ["--superlink", f"localhost:{site.gateway.port}", "--isolation", "process"]
    for words in (["--auth-supernode-private-key", str(key)], []):
        done = subprocess.run(
            [*command, "--port", str(free_port()), *words],
            env=site.federation.environment,
            cwd=tmp_path,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode != 0
    site.gateway.counted("auth", before["auth"] + 2)
    assert site.federation.online() == online
    # Signed by nobody: not even asked of the SuperLink.
    assert site.gateway.ask(request("POST", "/v1/fleet/pull-messages", PROTOBUF)) == (401, b"")


@pytest.mark.faults
def test_a_renewed_certificate_is_taken_up_without_a_break(site):
    def shown() -> bytes | None:
        with site.gateway.connect() as connection:
            return connection.getpeercert(binary_form=True)

    head = request("POST", "/v1/fleet/push-object", *SIGNED, PROTOBUF, "Content-Length: 8000")
    old = shown()
    with site.gateway.connect() as under_way:
        under_way.sendall(head + b"x" * 4000)
        site.gateway.renew()
        # By itself, for it looks every few seconds; SIGHUP makes it look at once.
        for _ in range(6):
            time.sleep(1)
            under_way.sendall(b"x" * 500)
        until(lambda: shown() != old, 10, "the new certificate is shown")
        status, _ = answer(under_way, b"x" * 1000)
    assert status == 401  # the SuperLink's own answer to such a signature
    newer = shown()
    site.gateway.renew()
    master(site.gateway).send_signal(signal.SIGHUP)
    until(lambda: shown() != newer, 4, "the newest certificate is shown", poll=0.2)
    assert site.federation.online() == 1
    assert site.gateway.service.starts == 1


@pytest.mark.faults
def test_too_many_at_once_wait_and_then_are_told_to_try_again(site):
    gateway = another(site, "narrow", GATEWAY_RATE="5", GATEWAY_BURST="5", GATEWAY_UPLOADS="1")
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(gateway.ask(request("GET", "/health"))[0])

    try:
        gateway.start()
        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert set(statuses) == {200, 503}
        assert 5 <= statuses.count(200) < 20
        time.sleep(1.5)
        head = request("POST", "/v1/fleet/push-object", *SIGNED, PROTOBUF, "Content-Length: 9000")
        with gateway.connect() as first:
            first.sendall(head + b"x")
            time.sleep(0.3)
            assert gateway.ask(head) == (503, b"")
        gateway.counted("rate", statuses.count(503) + 1)
    finally:
        gateway.service.kill()


@pytest.mark.faults
def test_a_superlink_that_is_away_is_told_as_what_a_node_waits_for(site):
    check = [sys.executable, str(FOLDER.parent / "tools" / "health.py")]
    check += ["--ca", str(site.federation.ca.path)]
    gateway = another(site, "early", GATEWAY_SUPERLINK=f"localhost:{free_port()}")
    try:
        gateway.start()
        sent = request("POST", "/v1/fleet/pull-messages", *SIGNED, PROTOBUF)
        assert gateway.ask(sent) == (502, b"")
        done = subprocess.run([*check, gateway.health], capture_output=True)
        assert done.returncode == 1 and b"502" in done.stdout
        until(lambda: "Connection refused" in gateway.service.log, 5, "the trouble is told")
        assert "pull-messages" not in gateway.service.log
        assert not gateway.refusals()
    finally:
        gateway.service.kill()
    assert subprocess.run([*check, site.gateway.health], capture_output=True).returncode == 0


@pytest.mark.faults
def test_it_ends_gently_and_with_nginx(site):
    gateway = another(site, "twice")
    try:
        gateway.start()
        gateway.ask(request("POST", START_RUN))
        master(gateway).send_signal(signal.SIGQUIT)
        assert gateway.service.wait(10) == 0
        gateway.start()
        gateway.ask(request("POST", START_RUN))
        gateway.counted("control", 2)
        master(gateway).kill()
        assert gateway.service.wait(10) != 0
    finally:
        gateway.service.kill()
