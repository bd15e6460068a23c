"""What is said where a SuperLink cannot be reached, or nobody executes its runs: real processes."""

from pathlib import Path

import pytest

from fedprune.flower import command
from fedprune.flower.app import app_folder, staged
from fedprune.flower.command import Connection, RuntimeFailure, status, submit, wait
from fedprune.flower.superlink import runtime_environment
from tests.support.certificates import authority, server_certificate
from tests.support.services import Service, free_port, listens, until

DEAD = "http://127.0.0.1:9"


def superlink(folder: Path, *words: str) -> tuple[Service, int]:
    """A SuperLink without an executor, started."""
    port = free_port()
    own = ["--isolation", "process", "--disable-runtime-dependency-installation"]
    line = ["flower-superlink", *words, *own, "--host", "127.0.0.1", "--port", str(port)]
    environment = runtime_environment() | {"FLWR_HOME": str(folder)}
    service = Service(line, folder, environment, folder / "superlink.log")
    service.start()
    until(lambda: listens(port), 120, "the SuperLink listens")
    return service, port


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    service, port = superlink(folder, "--insecure")
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "plain"\n[superlink.plain]\naddress = "127.0.0.1:{port}"\n'
        f'insecure = true\n[superlink.tls]\naddress = "127.0.0.1:{port}"\n'
    )
    yield folder, port, service
    service.end()


def connection(folder: Path, name: str) -> Connection:
    return Connection(name, runtime_environment() | {"FLWR_HOME": str(folder)}, folder)


@pytest.mark.slow
def test_a_run_that_nobody_begins_is_told_of_and_given_up(plain, monkeypatch):
    folder, _, _ = plain
    for name, seconds in (("LOOK", 0.5), ("TOLD", 1.0), ("MOST", 15.0)):
        monkeypatch.setattr(command, f"_PENDING_{name}_SECONDS", seconds)
    lines: list[str] = []
    to = connection(folder, "plain")
    with staged(app_folder()) as app:
        run_id = submit(app, to, {}, {})
    with pytest.raises(RuntimeFailure, match=r"Nobody has begun.*flower-superexec.*was stopped"):
        wait(run_id, to, lines.append)
    assert [line for line in lines if "Nobody has begun" in line] == [
        line for line in lines if line.startswith("WARNING : ")
    ]
    assert status(run_id, to).state == "finished:stopped"


def test_tls_is_missing_on_one_side(plain, tmp_path):
    with pytest.raises(RuntimeFailure, match="does not speak TLS, and this side does"):
        status("1", connection(plain[0], "tls"))
    certificate, key = server_certificate(tmp_path, ours := authority(tmp_path))
    words = ["--ssl-ca-certfile", str(ours.path), "--ssl-certfile", str(certificate)]
    service, port = superlink(tmp_path, *words, "--ssl-keyfile", str(key))
    try:
        (tmp_path / "config.toml").write_text(
            f'[superlink]\ndefault = "x"\n[superlink.x]\naddress = "127.0.0.1:{port}"\n'
            "insecure = true\n"
        )
        with pytest.raises(RuntimeFailure, match="speaks TLS, and this side does not: name the"):
            status("1", connection(tmp_path, "x"))
    finally:
        service.end()


def test_a_supernode_reaches_this_machine_past_a_dead_proxy(plain, tmp_path):
    _, port, link = plain
    environment = {
        name: value
        for name, value in runtime_environment().items()
        if not name.lower().endswith("_proxy")
    }
    proxies = {"HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD, "http_proxy": DEAD}
    line = ["fedprune", "supernode", "--any-app", "--insecure", "--isolation", "process"]
    line += ["--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port", str(free_port())]
    node = Service(line, tmp_path, environment | proxies, tmp_path / "node.log")
    node.start()
    try:
        until(lambda: "Activated node_id" in link.log, 180, "the node is there")
    finally:
        node.end()
    assert "through the proxy" not in node.log
