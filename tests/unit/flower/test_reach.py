"""Why a SuperLink cannot be reached, told of real ports."""

import http.server
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fedprune.flower import reach
from fedprune.flower.reach import LOOPBACK, bypass_proxies_here, proxy_of, trouble
from tests.support.certificates import authority, server_certificate
from tests.support.services import free_port

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def serving(certificate: Path | None = None, key: Path | None = None) -> Iterator[int]:
    """Serve pages on a port, over TLS with a certificate."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    if certificate is not None:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trust.load_cert_chain(certificate, key)
        server.socket = trust.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_that_speaks_tls_and_one_that_does_not(tmp_path: Path) -> None:
    ours, others = authority(tmp_path), authority(tmp_path, "other")
    with serving(*server_certificate(tmp_path, ours)) as port:
        address = f"127.0.0.1:{port}"
        assert trouble(address, tls=True, authority=ours.path) == ""
        told = trouble(address, tls=False)
        assert "speaks TLS, and this side does not" in told and "root-certificates" in told
        told = trouble(address, tls=True, authority=others.path)
        assert f"The certificate of {address} is not trusted" in told and "ca.crt" in told
        told = trouble(address, tls=True, authority=tmp_path / "none.crt")
        assert "none.crt' cannot be read" in told
    with serving() as port:
        assert trouble(f"127.0.0.1:{port}", tls=False) == ""
        assert "does not speak TLS, and this side does" in trouble(f"127.0.0.1:{port}", tls=True)


def test_nobody_there() -> None:
    assert "Connection refused" in trouble(f"127.0.0.1:{free_port()}", tls=False)
    assert "Nobody knows the name 'no.such.invalid'" in trouble("no.such.invalid:1", tls=False)
    assert "is no host:port" in trouble("somewhere", tls=False)
    assert reach.split("[::1]:80") == ("::1", 80)


def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
    told = trouble("superlink.example:443", tls=True)
    assert "through the proxy http://proxy:3128 (HTTPS_PROXY" in told and "secret" not in told
    assert "NO_PROXY=superlink.example" in told
    assert proxy_of("superlink.example", tls=False) is None
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    assert proxy_of("superlink.example", tls=False) == ("ALL_PROXY", "http://all:1")
    monkeypatch.setenv("NO_PROXY", "superlink.example")
    assert proxy_of("superlink.example", tls=True) is None


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ("", ",".join(LOOPBACK)),
        ("intranet, localhost", "intranet,localhost,127.0.0.1,::1"),
        ("*", "*"),
        ("a,*", "*"),
    ],
)
def test_this_machine_is_named_beside_what_is_known(known: str, expected: str) -> None:
    environment = {"no_proxy": known}
    for _ in range(2):
        bypass_proxies_here(environment)
        assert environment["no_proxy"] == expected
    assert environment["NO_PROXY"] == ",".join(LOOPBACK)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_what_flower_asks_of_this_machine_goes_past_a_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    with serving() as port:
        with pytest.raises(httpx.ConnectError):
            httpx.Client().get(f"http://127.0.0.1:{port}/")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        bypass_proxies_here(os.environ)
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
        assert httpx.Client().get(f"http://127.0.0.1:{port}/").status_code == 200
        assert trouble(f"127.0.0.1:{port}", tls=False) == ""
