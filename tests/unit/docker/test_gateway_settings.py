"""The gateway's configuration, and that it fits the Flower that is installed."""

import re
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

from tests.support.gateway import FOLDER, module

rendering = module("rendering")
_LARGEST = 2**64 - 1


def rendered(**environment: str) -> str:
    settings = rendering.Settings.of(environment)
    template = (FOLDER / "nginx.conf").read_text()
    return str(rendering.render(template, settings, "192.0.2.7:8000", Path("/run/here")))


def test_the_fleet_routes_are_flower_s() -> None:
    known = {f"/v1/fleet/{name}" for name in (*rendering.FLEET_ROUTES, *rendering.REFUSED_ROUTES)}
    assert {route.path for route in router.routes} == known
    assert all(route.methods == {"POST"} for route in router.routes)


def test_the_headers_are_those_of_a_supernode() -> None:
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
    assert set(seen[0].headers) - transport == {name.lower() for name in rendering.HEADERS}


def test_the_largest_part_of_an_array_fits() -> None:
    assert rendering.CHUNK_BYTES == FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
    name = f"ArrayChunk {rendering.CHUNK_BYTES}\0".encode()
    request = PushObjectRequest(
        node=Node(node_id=_LARGEST),
        run_id=_LARGEST,
        object_id="f" * 64,
        session_id="f" * 64,
        object_content=name + bytes(rendering.CHUNK_BYTES),
    )
    limit = rendering.FLEET_ROUTES["push-object"]
    assert request.ByteSize() < limit < rendering.CHUNK_BYTES * 1.02


def test_a_message_of_30_000_objects_fits() -> None:
    array = ObjectTree(object_id="f" * 64, children=[ObjectTree(object_id="f" * 64)])
    record = ObjectTree(object_id="f" * 64, children=[array] * 15_000)
    request = PushMessagesRequest(message_object_trees=[ObjectTree(children=[record])])
    assert request.ByteSize() + 4096 < rendering.FLEET_ROUTES["push-messages"]


def test_every_place_is_filled_in_and_what_is_allowed_is_written_out() -> None:
    text = rendered(GATEWAY_RATE="7", GATEWAY_BURST="50", GATEWAY_LISTEN="[::]:443")
    assert not re.search(r"@[A-Z_]+@", text)
    assert "rate=7r/s" in text and "burst=50 delay=20;" in text
    assert "server 192.0.2.7:8000;" in text and "proxy_ssl_name superlink;" in text
    assert "listen [::]:443 ssl" in text
    passed = re.findall(r"proxy_pass https://superlink(\S+);", text)
    assert passed == ["/health", *(f"/v1/fleet/{name}" for name in rendering.FLEET_ROUTES)]
    assert not re.search(r"proxy_pass\s+\S*\$", text)


@pytest.mark.parametrize(("memory", "uploads"), [(256 * 2**20, 33), (1, 8), (2**40, 512)])
def test_bodies_fit_the_container_s_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, uploads: int
) -> None:
    names = ("memory.max", "memory.limit_in_bytes")
    (tmp_path / names[0]).write_text("max\n")
    (tmp_path / names[1]).write_text(f"{memory}\n")
    monkeypatch.setattr(rendering, "_MEMORY", [tmp_path / name for name in names])
    monkeypatch.setattr(rendering.os, "sysconf", lambda name: 2**20)
    assert f"limit_conn all_uploads {uploads};" in rendered()
    assert "limit_conn all_uploads 99;" in rendered(GATEWAY_ALL_UPLOADS="99")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RATE", "0"),
        ("RATE", "many"),
        ("UPLOADS", "-1"),
        ("BURST", "1; include /etc/passwd"),
        ("LISTEN", "8443"),
        ("SUPERLINK", "superlink"),
        ("KEY", "/run/key; }"),
        ("CA", "/a file"),
    ],
)
def test_a_wrong_setting_is_named(name: str, text: str) -> None:
    with pytest.raises(rendering.SettingError) as raised:
        rendering.Settings.of({f"GATEWAY_{name}": text})
    assert f"GATEWAY_{name}" in str(raised.value) and repr(text) in str(raised.value)
