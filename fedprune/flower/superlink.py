"""A SuperLink of one's own for one run: nothing is shared, nothing is left behind.

`flwr run` on a local connection starts a daemon that stays: its environment and folder are those of
the first command that ever started it, it lets Ray import a ``client_app`` package found in that
folder before the app's own, installs the app's dependencies anew for every run, and leaves sessions
in ``/tmp/ray``. A private SuperLink runs with this process's environment from an empty folder, and
ends with the run. Without it: a second run would use the settings, and from some folders even the
code, of another one.
"""

import contextlib
import http.client
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import tomli_w

from fedprune.flower import ray_head, supervisor
from fedprune.flower.command import Connection, RuntimeFailure
from fedprune.flower.reach import bypass_proxies_here

_NAME = "private"
_HOST = "127.0.0.1"
# Below the range from which operating systems take ports for outgoing connections, so that none
# takes this one in the seconds between finding it free and the SuperLink listening on it.
_PORTS = (20000, 32000)
# Ray puts Unix sockets up to 68 characters below the folder made here, whose own name has 18; on
# some systems a socket's path may have 103 in all.
_LONGEST_FOLDER = 17
_POLL_SECONDS = 0.05
_END_SECONDS = 30.0
_LOG_LINES = 15


@contextlib.contextmanager
def private_superlink(timeout: float = 60.0, ray_cpus: int = 0) -> Iterator[Connection]:
    """Run a SuperLink for simulations, and end it with every process it has started.

    `timeout`: seconds it may take to answer. `ray_cpus`: processors of a Ray that is started at the
    same time; 0 leaves it to each simulation. Yields the connection to it. Raises RuntimeFailure:
    it ended or did not answer in time; the message holds the end of its log.
    """
    folder = Path(tempfile.mkdtemp(prefix="fedprune-", dir=_short_folder()))
    try:
        port = _free_port()
        connection = _connection(folder, port, ray_cpus > 0)
        command = _command(connection, port)
        if ray_cpus:
            command += ["--", sys.executable, "-P", ray_head.__file__, str(ray_cpus)]
        with _kept(connection, command) as process:
            _wait_until_healthy(process, connection, port, timeout)
            try:
                yield connection
            except RuntimeFailure as failure:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0 if _healthy(port) else _END_SECONDS)
                if process.returncode is None:
                    raise
                message = f"{failure} Flower's SuperLink or Ray has ended. Its log ends with:"
                raise RuntimeFailure(message, log_tail(connection)) from failure
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def runtime_environment() -> dict[str, str]:
    """Return this process's environment, made safe for `flwr` commands.

    Flower finds its own commands by name, so the folder of this interpreter's scripts comes first
    in ``PATH``; answers in JSON carry no colours; nothing goes through a proxy to this machine.
    """
    environment = dict(os.environ)
    environment.pop("FORCE_COLOR", None)
    bypass_proxies_here(environment)
    scripts = sysconfig.get_path("scripts")
    return environment | {
        "PATH": os.pathsep.join([scripts, environment.get("PATH", os.defpath)]),
        "NO_COLOR": "1",
        # Lines of a run's log come as they are written, not when a buffer is full.
        "PYTHONUNBUFFERED": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def _connection(folder: Path, port: int, has_ray: bool) -> Connection:
    environment = runtime_environment()
    # A cluster of the user's would get this run's clients.
    environment.pop("RAY_ADDRESS", None)
    environment |= {
        supervisor.MARK: str(folder),
        "FLWR_HOME": str(folder / "flwr"),
        # Half a second sooner than by default, at the cost of 1 % of a core while the run lasts.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Workers started ahead of time cannot become Flower's actors: they only cost 3 s of start.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    if has_ray:
        environment["RAY_ADDRESS"] = f"{_HOST}:{_free_port()}"
        # A simulation may look for it before it is there: its first five seconds are not enough.
        environment["RAY_gcs_rpc_server_connect_timeout_s"] = "60"
    for name in ("flwr", "work"):
        (folder / name).mkdir()
    link = {"address": f"{_HOST}:{port}", "insecure": True}
    config = {"superlink": {"default": _NAME, _NAME: link}}
    (folder / "flwr" / "config.toml").write_text(tomli_w.dumps(config), encoding="utf-8")
    return Connection(_NAME, environment, folder / "work", folder / "superlink.log", has_ray)


def _command(connection: Connection, port: int) -> list[str]:
    found = shutil.which("flower-superlink", path=connection.environment["PATH"])
    if found is None:
        raise RuntimeFailure(
            "The command `flower-superlink` is not found. Install fedprune's dependencies in "
            "this environment (`make install`)."
        )
    options = ["--simulation", "--insecure", "--disable-runtime-dependency-installation"]
    return [found, *options, "--isolation", "subprocess", "--host", _HOST, "--port", str(port)]


@contextlib.contextmanager
def _kept(connection: Connection, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` under a supervisor that ends it when this process lets go or dies."""
    folder = connection.folder.parent
    with (
        (folder / "superlink.log").open("ab") as log,
        # By path and with -P: the supervisor must start from any folder and import nothing from it.
        subprocess.Popen(
            [sys.executable, "-P", supervisor.__file__, str(folder), *command],
            cwd=connection.folder,
            env=dict(connection.environment),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_healthy(
    process: subprocess.Popen[bytes], connection: Connection, port: int, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    while not _healthy(port):
        if process.poll() is not None:
            raise RuntimeFailure(
                "Flower's SuperLink ended at once. Its log ends with:", log_tail(connection)
            )
        if time.monotonic() > deadline:
            raise RuntimeFailure(
                f"Flower's SuperLink did not answer in {timeout:.0f} s. Its log ends with:",
                log_tail(connection),
            )
        time.sleep(_POLL_SECONDS)


def log_tail(connection: Connection) -> str:
    """Return the last lines of a SuperLink's log, on lines of their own; empty without a log."""
    if connection.log is None or not connection.log.exists():
        return ""
    lines = connection.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(["", *lines[-_LOG_LINES:]])


def _healthy(port: int) -> bool:
    request = http.client.HTTPConnection(_HOST, port, timeout=1.0)
    try:
        request.request("GET", "/health")
        return request.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        request.close()


def _free_port() -> int:
    choice = random.SystemRandom()
    while True:
        port = choice.randrange(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return port


def _short_folder() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_FOLDER else "/tmp"
