"""The small programs inside the images: health, executor, SuperNode, registrar."""

import http.server
import json
import os
import ssl
import sys
import threading
from pathlib import Path

import pytest

from tests.support.certificates import authority, server_certificate
from tests.support.containers import tool
from tests.support.flower import fake_flwr

health, start, registrar = tool("health"), tool("start"), tool("registrar")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(request, tmp_path):
    """A neighbour over TLS, and the authority that its certificate is of."""
    signer = authority(tmp_path)
    certificate, key = server_certificate(tmp_path, signer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{listener.server_port}", signer.path
        listener.shutdown()


def test_healthy_is_who_answers_200_with_a_certificate_of_the_authority(
    server, tmp_path, monkeypatch
):
    url, trusted = server
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "superlink")
    (told,) = health.troubles([f"{url}/health"], str(trusted), [], [])
    assert "refused" in told  # as the service itself, which asks the proxy
    monkeypatch.setenv("no_proxy", "superlink,127.0.0.1")
    assert list(health.troubles([f"{url}/health"], str(trusted), [], [])) == []
    (told,) = health.troubles([f"{url}/other"], str(trusted), [], [])
    assert "503" in told
    stranger = authority(tmp_path, "stranger")
    (told,) = health.troubles([f"{url}/health"], str(stranger.path), [], [])
    assert "CERTIFICATE_VERIFY_FAILED" in told


def test_unhealthy_is_what_does_not_answer_run_or_write(tmp_path):
    (told,) = health.troubles(["http://127.0.0.1:1/health"], "", [], [])
    assert told.startswith("http://127.0.0.1:1/health: ")
    (told,) = health.troubles([], "", ["no-such-program"], [])
    assert told == "no process 'no-such-program' is running"
    running = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")[0].decode()
    assert list(health.troubles([], "", [os.path.basename(running)], [str(tmp_path)])) == []
    (told,) = health.troubles([], "", [], ["/proc/1/no-such-folder"])
    assert "cannot be written" in told


def test_health_exits_with_1_and_one_line(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["health.py", "--process", "none-of-these", "--process", "x-y"]
    )
    assert health.main() == 1
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_executor_uses_tls_where_its_peer_does():
    secure = start.executor("https://superlink:8000")
    assert secure[:4] == [
        "flower-superexec",
        "--root-certificates",
        "/run/secrets/ca.crt",
        secure[3],
    ]
    assert secure[4] == "superlink:8000" and "--insecure" not in secure
    inside = start.executor("http://runtime:9094")
    assert "--insecure" in inside and "runtime:9094" in inside
    for words in (secure, inside):
        assert words[-2:] == ["--superexec-auth-secret-file", "/run/secrets/superexec.secret"]


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({}, 8),
    ],
)
def test_executor_starts_no_more_threads_than_it_may_run(tmp_path, files, count):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert start.threads(tmp_path, 8) == count


SIGNS = 'signing-key="/run/secrets/signing.key"'
NODE = {"SERVER": "fed.example.org:8443", "SITE": "site-a", "PARTITION_ID": "4"}


def test_supernode_speaks_to_the_server_with_its_key_and_its_settings():
    words = start.supernode(NODE | {"NUM_PARTITIONS": "9", "NODE_CONFIG": ' text-key="body" '})
    assert words[:3] == ["fedprune", "supernode", "--"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--superlink"] == "fed.example.org:8443"
    assert options["--root-certificates"] == "/run/secrets/ca.crt"
    assert options["--auth-supernode-private-key"] == "/run/secrets/node.key"
    assert (options["--isolation"], options["--host"]) == ("process", "runtime")
    expected = (
        f'site="site-a" partition-id=4 num-partitions=9 data-path="/data" {SIGNS} text-key="body"'
    )
    assert options["--node-config"] == expected
    assert "--insecure" not in words


def test_supernode_takes_what_is_said_twice_once_or_says_where_it_belongs():
    config = start.node_config(NODE | {"NODE_CONFIG": 'data-path="/data/notes"'})
    assert config == f'site="site-a" partition-id=4 {SIGNS} data-path="/data/notes"'
    config = start.node_config(NODE | {"NODE_CONFIG": 'signing-key="/site/key"'})
    assert config == 'site="site-a" partition-id=4 data-path="/data" signing-key="/site/key"'
    # What stands in quotes is no key.
    config = start.node_config(NODE | {"NODE_CONFIG": 'glob="site= data-path=x"'})
    assert config.startswith(f'site="site-a" partition-id=4 data-path="/data" {SIGNS} glob=')
    for key, name in (("site", "SITE"), ("partition-id", "PARTITION_ID")):
        with pytest.raises(SystemExit, match=f"`{key}` must not be in NODE_CONFIG: say {name}"):
            start.node_config(NODE | {"NODE_CONFIG": f"threads=2 {key}=1"})
    with pytest.raises(SystemExit, match="say it once"):
        start.node_config(NODE | {"NUM_PARTITIONS": "3", "NODE_CONFIG": "num-partitions=3"})


def test_supernode_runs_other_apps_only_if_told():
    assert start.supernode(NODE | {"ALLOWED_APPS": "aa bb"})[2:6] == ["--app", "aa", "--app", "bb"]
    assert "--app" not in start.supernode(NODE) and "--any-app" not in start.supernode(NODE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVER", "fed.example.org"),
        ("SITE", ""),
        ("SITE", 'a" partition-id=0'),
        ("PARTITION_ID", "first"),
        ("NUM_PARTITIONS", "-1"),
    ],
)
def test_supernode_says_which_setting_is_wrong(name, value):
    with pytest.raises(SystemExit, match=f"`{name}` must be "):
        start.supernode(NODE | {name: value})


@pytest.fixture
def link(tmp_path, monkeypatch):
    fake = fake_flwr(tmp_path / "bin")
    monkeypatch.setenv("PATH", os.pathsep.join([str(fake.folder), os.environ["PATH"]]))
    (tmp_path / "keys").mkdir()
    return fake


def registered(folder: Path, monkeypatch, *words: str) -> int:
    command = ["registrar.py", *words, "--keys", str(folder / "keys")]
    monkeypatch.setattr(sys, "argv", [*command, "--notes", str(folder / "nodes.json")])
    return registrar.main()


def answer(**values: object) -> dict[str, object]:
    return {"out": "a warning\n" + json.dumps(values)}


def known() -> dict[str, object]:
    return {"out": json.dumps({"success": False, "error-message": "Public key already in use"})}


def test_registrar_registers_every_key_and_notes_the_numbers(link, tmp_path, monkeypatch, capsys):
    for site in ("b", "a", "c"):
        (tmp_path / "keys" / f"{site}.pub").touch()
    good = {"success": True, "node-id": "7"}
    link.answers(
        supernode=[answer(**good), known() | {"code": 1}, answer(**good | {"node-id": "9"})]
    )
    assert registered(tmp_path, monkeypatch) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["a: registered as node 7", "b: registered before", "c: registered as node 9"]
    assert json.loads((tmp_path / "nodes.json").read_text()) == {"a": "7", "c": "9"}
    calls = link.calls("supernode")
    assert [call[call.index("--name") + 1] for call in calls] == ["a", "b", "c"]


def test_registrar_goes_on_after_a_key_that_is_refused_and_ends_with_1(
    link, tmp_path, monkeypatch, capsys
):
    for site in ("a", "b"):
        (tmp_path / "keys" / f"{site}.pub").touch()
    link.answers(
        supernode=[{"err": "no such curve", "code": 3}, answer(success=True, **{"node-id": "5"})]
    )
    assert registered(tmp_path, monkeypatch) == 1
    said = capsys.readouterr()
    assert "b: registered as node 5" in said.out and "a: no such curve" in said.err


def test_registrar_of_a_starting_server_does_not_keep_the_gateway_shut(
    link, tmp_path, monkeypatch, capsys
):
    (tmp_path / "keys" / "a.pub").touch()
    link.answers(supernode=[{"err": "no such curve", "code": 3}])
    assert registered(tmp_path, monkeypatch, "--keep-going") == 0
    assert "a: no such curve" in capsys.readouterr().err


def test_registrar_says_when_there_is_no_key(link, tmp_path, monkeypatch, capsys):
    assert registered(tmp_path, monkeypatch) == 0
    assert "no node can take part yet" in capsys.readouterr().err


def test_registrar_shuts_a_site_out_by_its_name(link, tmp_path, monkeypatch, capsys):
    (tmp_path / "keys" / "a.pub").touch()
    (tmp_path / "nodes.json").write_text('{"a": "7", "b": "9"}')
    link.answers(supernode=[answer(success=True)])
    assert registered(tmp_path, monkeypatch, "--remove", "a") == 0
    assert link.calls("supernode")[0][1:4] == ["unregister", "7", "server"]
    assert json.loads((tmp_path / "nodes.json").read_text()) == {"b": "9"}
    assert "Delete 'a.pub'" in capsys.readouterr().out
    assert registered(tmp_path, monkeypatch, "--remove", "a") == 1
    assert "no note of the number of 'a'" in capsys.readouterr().err
