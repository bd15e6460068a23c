"""The gateway's configuration, and that it fits the Flower that is installed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.superlink.routers.fleet.router import router
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from tests.support.gateway import FOLDER

TEMPLATE = (FOLDER / "nginx.conf.template").read_text()
START = FOLDER / "start.sh"
_LARGEST = 2**64 - 1

needs_envsubst = pytest.mark.skipif(not shutil.which("envsubst"), reason="`make nginx` installs it")


def shown(script: Path = START, **environment: str) -> subprocess.CompletedProcess[str]:
    """Let the gateway show its configuration."""
    settings = {f"GATEWAY_{name}": text for name, text in environment.items()}
    return subprocess.run(
        ["sh", str(script), "--show"],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def limit(route: str) -> int:
    """Return the largest body of a request, in bytes."""
    block = TEMPLATE.partition(f"location = /v1/fleet/{route} {{")[2]
    return int(re.search(r"client_max_body_size (\d+);", block)[1])


def test_the_fleet_routes_are_flower_s():
    listed = re.search(r'"~\^POST /v1/fleet/\(([a-z|-]+)\)\$" 1;', TEMPLATE)[1].split("|")
    known = {f"/v1/fleet/{name}" for name in (*listed, "register-node", "unregister-node")}
    assert {route.path for route in router.routes} == known
    assert all(route.methods == {"POST"} for route in router.routes)


def test_the_headers_are_those_of_a_supernode():
    seen: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, request=request)

    client = FleetHttpClient(
        "http://here",
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(*generate_key_pairs()),
        ],
    )
    client._client = httpx.Client(transport=httpx.MockTransport(reply))
    client.PushObject(PushObjectRequest())
    transport = {"host", "accept-encoding", "connection", "user-agent", "content-length"}
    passed = dict(re.findall(r"proxy_set_header (\S+) \$http_(\S+);", TEMPLATE))
    assert set(seen[0].headers) - transport == {name.lower() for name in passed}
    assert all(name.lower().replace("-", "_") == value for name, value in passed.items())


def test_the_largest_part_of_an_array_fits():
    size = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
    name = f"ArrayChunk {size}\0".encode()
    request = PushObjectRequest(
        node=Node(node_id=_LARGEST),
        run_id=_LARGEST,
        object_id="f" * 64,
        session_id="f" * 64,
        object_content=name + bytes(size),
    )
    assert request.ByteSize() < limit("push-object") < size * 1.02


def test_a_message_of_30_000_objects_fits():
    array = ObjectTree(object_id="f" * 64, children=[ObjectTree(object_id="f" * 64)])
    record = ObjectTree(object_id="f" * 64, children=[array] * 15_000)
    request = PushMessagesRequest(message_object_trees=[ObjectTree(children=[record])])
    assert request.ByteSize() + 4096 < limit("push-messages")


@needs_envsubst
def test_every_place_is_filled_in_and_nginx_s_own_variables_stay():
    text = shown(RATE="7", BURST="50", LISTEN="[::]:443", SUPERLINK="link.example:9000").stdout
    assert "${" not in text and "$request_method $request_uri" in text
    assert "rate=7r/s" in text and "burst=50 delay=20;" in text
    assert "server link.example:9000;" in text and "proxy_ssl_name link.example;" in text
    assert "listen [::]:443 ssl" in text
    # What is asked goes on as it was sent, and nowhere else.
    assert set(re.findall(r"proxy_pass (\S+);", text)) == {
        "https://superlink",
        "https://superlink/health",
    }


@needs_envsubst
@pytest.mark.parametrize(
    ("limit", "machine", "uploads"),
    [
        ("268435456", 2**22, 33),
        ("max", 1, 8),
        ("max", 2**30, 512),
        ("9223372036854771712", 2**17, 16),
    ],
)
def test_bodies_fit_the_container_s_memory(tmp_path, limit, machine, uploads):
    (tmp_path / "limit").write_text(f"{limit}\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: {machine} kB\n")
    text = START.read_text().replace("/proc/meminfo", f"{tmp_path}/meminfo")
    script = tmp_path / "start.sh"
    script.write_text(text.replace("/sys/fs/cgroup/memory.max", f"{tmp_path}/limit"))
    (tmp_path / "nginx.conf.template").write_text(TEMPLATE)
    assert f"limit_conn all_uploads {uploads};" in shown(script).stdout
    assert "limit_conn all_uploads 99;" in shown(script, ALL_UPLOADS="99").stdout


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RATE", "0"),
        ("RATE", "many"),
        ("RATE", "1000001"),
        ("UPLOADS", "-1"),
        ("BURST", "1; include /etc/passwd"),
        ("LISTEN", "8443"),
        ("SUPERLINK", "superlink"),
        ("KEY", "/run/key; }"),
        ("CA", "/a file"),
        ("CA", "$HOME/ca"),
    ],
)
def test_a_wrong_setting_is_named(name, text):
    done = shown(**{name: text})
    assert done.returncode == 2 and done.stdout == ""
    assert f"GATEWAY_{name}" in done.stderr and repr(text) in done.stderr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "[crit] 7#7: *1 SSL_do_handshake() failed (SSL: error:0A:x) while SSL handshaking, "
            "client: 192.0.2.9, server: 0.0.0.0:8443",
            '{"time":"2026-01-02T03:04:05+00:00","address":"192.0.2.9","status":"","reason":"tls"}',
        ),
        (
            "[info] 7#7: *1 client timed out (110: Connection timed out) while waiting for "
            "request, client: 2001:db8::1, server: 0.0.0.0:8443",
            '{"time":"2026-01-02T03:04:05+00:00","address":"2001:db8::1","status":"",'
            '"reason":"slow"}',
        ),
        (
            "[error] 7#7: *1 connect() failed (111: Connection refused) while connecting to "
            'upstream, client: 192.0.2.9, request: "POST /secret", host: "SSL_do_handshake() '
            'failed while SSL handshaking, client: 192.0.2.1, x"',
            "2026-01-02T03:04:05+00:00 error: connect() failed (111: Connection refused) while "
            "connecting to upstream",
        ),
        (
            "[emerg] 7#7: host not found in upstream",
            "2026-01-02T03:04:05+00:00 emerg: host not found in upstream",
        ),
        ('[info] 7#7: *1 client sent invalid request, client: 192.0.2.9, request: "x"', ""),
        ("[error] 7#7: *1 client intended to send too large body: 9 bytes, client: x", ""),
        ("[notice] 7#7: signal process started", ""),
    ],
)
def test_of_nginx_s_error_log_no_content_is_told(line, told):
    done = subprocess.run(
        ["sed", "-Enf", str(FOLDER / "log.sed")],
        input=f"2026/01/02 03:04:05 {line}\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == told
