"""The private SuperLink, with a small server in Flower's place: what it starts is all ended."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import fedprune
from fedprune.flower import superlink
from fedprune.flower.command import Connection, RuntimeFailure
from fedprune.flower.superlink import private_superlink, runtime_environment
from fedprune.flower.supervisor import MARK
from tests.support.flower import executable

# Starts, as Flower does, a process in a session of its own, and one that hides its environment.
_SERVER = """#!{python}
import http.server, os, pathlib, subprocess, sys
hidden = {k: v for k, v in os.environ.items() if k != "FEDPRUNE_SUPERLINK"}
subprocess.Popen(["sleep", "{nap}"], start_new_session=True)
subprocess.Popen(["sleep", "{nap}"], env=hidden, start_new_session=True)
subprocess.Popen(["sh", "-c", "sleep {nap} & exec true"], env=hidden)
pathlib.Path("folder-at-start").write_text(os.getcwd())
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
address = (sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1]))
pathlib.Path("port").write_text(str(address[1]))
http.server.HTTPServer(address, Handler).serve_forever()
"""
_SILENT = """#!{python}
import subprocess, time
print("I say nothing more", flush=True)
subprocess.Popen(["sleep", "{nap}"], start_new_session=True)
time.sleep(600)
"""
_BROKEN = """#!{python}
import sys
sys.exit("address already in use")
"""
_RAY = """
import os, pathlib, subprocess, sys, time
if sys.argv[1] == "13":
    while not pathlib.Path("in-use").exists():
        time.sleep(0.05)
    sys.exit("Ray finds no room")
pathlib.Path("ray-at-start").write_text(sys.argv[1] + " " + os.environ["RAY_ADDRESS"])
subprocess.Popen(["sleep", "{nap}"], start_new_session=True)
time.sleep(600)
"""
_OWNER = """
import sys, time
from fedprune.flower import superlink
superlink.sysconfig.get_path = lambda name: sys.argv[1]
with superlink.private_superlink() as connection:
    print(connection.folder.parent, flush=True)
    time.sleep(600)
"""

Install = Callable[[str], Path]

NAP = f"600.{os.getpid()}"
"""How long this module's processes sleep: tells them from those of another test run."""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a script in the place of `flower-superlink`."""

    def put(text: str) -> Path:
        executable(tmp_path / "flower-superlink", text.replace("{nap}", NAP))
        monkeypatch.setattr(superlink.sysconfig, "get_path", lambda name: str(tmp_path))
        monkeypatch.setattr(superlink, "_short_folder", lambda: str(tmp_path))
        return tmp_path

    return put


def sleepers() -> set[int]:
    """Return the sleeping processes of this module's servers."""
    ours = ["sleep", NAP]
    return {p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ours}


def eventually(reached: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.05)
    return reached()


def test_nothing_survives(install: Install) -> None:
    install(_SERVER)
    with private_superlink() as connection:
        folder = connection.folder.parent
        assert (connection.folder / "folder-at-start").read_text() == str(connection.folder)
        assert eventually(lambda: len(sleepers()) == 3)
    assert not sleepers()
    assert not folder.exists()


def test_the_connection_is_its_own(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")
    install(_SERVER)
    with private_superlink() as connection:
        home = Path(connection.environment["FLWR_HOME"])
        assert 'default = "private"' in (home / "config.toml").read_text()
        assert home.parent == connection.folder.parent == Path(connection.environment[MARK])
        assert "RAY_ADDRESS" not in connection.environment and not connection.has_ray
        assert connection.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small program in Ray's place, which starts a process as Ray does."""
    (tmp_path / "ray.py").write_text(_RAY.replace("{nap}", NAP))
    monkeypatch.setattr(superlink.ray_head, "__file__", str(tmp_path / "ray.py"))


def test_ray_starts_beside_it_and_ends_with_it(install: Install, ray: None) -> None:
    install(_SERVER)
    with private_superlink(ray_cpus=3) as connection:
        address = connection.environment["RAY_ADDRESS"]
        assert connection.has_ray
        assert eventually(lambda: len(sleepers()) == 4)
        assert (connection.folder / "ray-at-start").read_text() == f"3 {address}"
    assert not sleepers()


def test_a_ray_that_ends_while_it_is_needed_shows_its_log(install: Install, ray: None) -> None:
    place = install(_SERVER)
    with (
        pytest.raises(RuntimeFailure, match=r"no answer(.|\n)*Ray finds no room"),
        private_superlink(ray_cpus=13) as connection,
    ):
        port = int((connection.folder / "port").read_text())
        (connection.folder / "in-use").touch()
        assert eventually(lambda: not superlink._healthy(port))
        raise RuntimeFailure("no answer.")
    assert not sleepers()
    assert not list(place.glob("fedprune-*"))


def test_an_exception_ends_it_too(install: Install) -> None:
    install(_SERVER)
    with pytest.raises(KeyboardInterrupt), private_superlink() as connection:
        folder = connection.folder.parent
        raise KeyboardInterrupt
    assert not sleepers()
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_that_uses_it(install: Install, number: int) -> None:
    scripts = install(_SERVER)
    command = [sys.executable, "-c", _OWNER, str(scripts)]
    path = {"PYTHONPATH": str(Path(fedprune.__file__).parents[1])}
    with subprocess.Popen(
        command, env=os.environ | path, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert eventually(lambda: len(sleepers()) == 3)
        os.kill(owner.pid, number)
        owner.wait()
    assert eventually(lambda: not sleepers() and not folder.exists())


def test_one_that_ends_at_once_shows_its_log(install: Install) -> None:
    place = install(_BROKEN)
    with pytest.raises(RuntimeFailure, match="address already in use"), private_superlink():
        pytest.fail("it never answered")
    assert not list(place.glob("fedprune-*"))


def test_one_that_never_answers_shows_its_log(install: Install) -> None:
    place = install(_SILENT)
    with (
        pytest.raises(RuntimeFailure, match=r"did not answer in 1 s(.|\n)*nothing more"),
        private_superlink(timeout=1.0),
    ):
        pytest.fail("it never answered")
    assert not sleepers()
    assert not list(place.glob("fedprune-*"))


def test_a_missing_superlink_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeFailure, match="make install"), private_superlink():
        pytest.fail("there is none")


def test_the_log_s_end_is_short_and_missing_without_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    connection = Connection("fake", {}, tmp_path, log)
    assert superlink.log_tail(connection) == ""
    log.write_text("\n".join(map(str, range(100))))
    assert superlink.log_tail(connection).split() == [str(line) for line in range(85, 100)]


def test_the_environment_of_flwr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("PYTHONPATH", "/mine")
    environment = runtime_environment()
    first, *rest = environment["PATH"].split(os.pathsep)
    assert Path(first, "flwr").exists()
    assert rest == ["/usr/bin"]
    assert environment["NO_PROXY"] == "intranet,127.0.0.1,localhost,::1"
    assert "FORCE_COLOR" not in environment
    assert environment["PYTHONPATH"] == "/mine"


def test_long_temporary_folders_are_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/a/very/long/temporary/folder")
    assert superlink._short_folder() == "/tmp"
    monkeypatch.setattr(tempfile, "tempdir", "/scratch")
    assert superlink._short_folder() == "/scratch"
