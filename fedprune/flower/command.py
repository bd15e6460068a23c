"""Submit, follow and stop a run through Flower's own `flwr` command.

Only the command is a stable interface. It ends with 0 when a run fails, splits values at quotes,
and its log breaks off with the connection. We give values in a file, follow a log again from where
it broke off, and ask for a run's status: it is done when Flower lists it as ``finished:completed``.
A run that nobody executes stays pending; we say what is missing, and give it up.
Without it: a failed run would pass for a good one, no value could hold a quote or a line break, and
a SuperLink without an executor would be waited for without end.
"""

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict, cast

import tomli_w

from fedprune.errors import FedpruneError
from fedprune.flower.reach import trouble

Scalar = str | int | float | bool

_COMMAND_SECONDS = 120.0
_RETRY_SECONDS = 1.0
_RETRIES = 30  # Each costs the second above and about one more for the command itself.
_PENDING = ("pending", "starting")
_PENDING_LOOK_SECONDS = 20.0
_PENDING_TOLD_SECONDS = 60.0
_PENDING_MOST_SECONDS = 900.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class RuntimeFailure(FedpruneError):
    """Flower's runtime did not do what was asked, or a run did not complete.

    `details`: what Flower says about it, empty when it says nothing.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(f"{message} {details}".strip())
        self.details = details


@dataclass(frozen=True)
class Connection:
    """One SuperLink as `flwr` knows it."""

    name: str  # its name in Flower's ``config.toml``
    # environment of the `flwr` commands, ``FLWR_HOME`` and ``PATH`` included
    environment: Mapping[str, str]
    # folder the commands run in. It holds no Python package: a daemon that `flwr` starts keeps this
    # folder, and Ray would import a ``client_app`` found there before the app's own.
    folder: Path
    log: Path | None = None  # log of the SuperLink's processes, where they run on this machine
    has_ray: bool = False  # whether simulations find a Ray that runs already


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    state: str  # ``pending``, ``starting``, ``running`` or ``finished:{completed,failed,stopped}``
    details: str = ""  # the exception's text after a failure, empty otherwise

    @property
    def finished(self) -> bool:
        """Whether the run will not change any more."""
        return self.state.startswith("finished")

    @property
    def completed(self) -> bool:
        """Whether the run ended well."""
        return self.state == "finished:completed"


def submit(
    app: Path,
    connection: Connection,
    run_config: Mapping[str, Scalar],
    federation: Mapping[str, Scalar],
) -> str:
    """Send the app and its configuration to the SuperLink and return the run's id.

    `app`: folder that holds the app's ``pyproject.toml``. `run_config`: values for the keys of
    ``[tool.flwr.app.config]``; strings may hold anything. `federation`: options of the simulation
    (``num-supernodes``, ...), empty for a deployment. Raises RuntimeFailure: Flower refused the app
    or the configuration, or cannot be reached.
    """
    # How large Ray is can be said of one that is yet to be started only.
    asked = {k: v for k, v in federation.items() if not (connection.has_ray and "init-args" in k)}
    options = " ".join(f"{key}={json.dumps(value)}" for key, value in asked.items())
    # A file, because on the command line a value cannot hold its own quote or a line break.
    with tempfile.TemporaryDirectory(prefix="fedprune-run-") as folder:
        values = Path(folder, "run.toml")
        values.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        arguments = ["run", str(app), connection.name, "--run-config", str(values)]
        if options:
            arguments += ["--federation-config", options]
        answer = _flwr(connection, *arguments)
    run_id = answer.get("run-id")
    if not run_id:
        raise RuntimeFailure("Flower accepted the run but gave it no id.", str(answer))
    return run_id


def status(run_id: str, connection: Connection) -> RunStatus:
    """Return where a run stands.

    Raises RuntimeFailure: Flower cannot be reached or does not know the run.
    """
    runs = _flwr(connection, "list", "--run-id", run_id, connection.name).get("runs", [])
    if not runs:
        raise RuntimeFailure(f"Flower lists no run {run_id}.")
    details = runs[0].get("status-details") or ""
    return RunStatus(runs[0]["status"], "" if details == "N/A" else details)


def stop(run_id: str, connection: Connection) -> None:
    """Stop a run.

    Raises RuntimeFailure: Flower cannot be reached, or the run has finished already.
    """
    _flwr(connection, "stop", run_id, connection.name)


def follow(
    run_id: str, connection: Connection, on_line: Callable[[str], None], skip: int = 0
) -> int:
    """Hand every line of a run's log to ``on_line`` until the log ends.

    `on_line`: called with each line, without colours or its line break. `skip`: lines to leave out
    at the beginning: `flwr log` always starts from there. Returns number of lines the log has so
    far, ``skip`` included.
    """
    seen = 0
    with subprocess.Popen(
        _command(connection, "log", run_id, connection.name),
        cwd=connection.folder,
        env=dict(connection.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        # What goes wrong is learnt from the run's status; here it would be counted as log.
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        # Ctrl-C is this process's to answer: it stops the run first, then the log.
        start_new_session=True,
    ) as process:
        try:
            for line in process.stdout or ():
                # A line cut off by a broken connection comes whole after the next one.
                if line.endswith("\n"):
                    seen += 1
                    if seen > skip:
                        on_line(_COLOUR.sub("", line).rstrip("\r\n"))
        finally:
            process.kill()
    return max(seen, skip)


def wait(run_id: str, connection: Connection, on_line: Callable[[str], None]) -> RunStatus:
    """Follow a run until it has finished, also when its log breaks off in between.

    `run_id`, `connection`, `on_line`: as for :func:`follow`; no line is handed on twice. Raises
    RuntimeFailure: Flower could not be reached for a minute, or nobody began with the run in a
    quarter of an hour although no other run was under way; it has been stopped then. Raises
    KeyboardInterrupt after the run has been stopped.
    """
    with _Beginning(run_id, connection, on_line) as beginning:
        try:
            ended = _wait(run_id, connection, beginning.take)
        except KeyboardInterrupt:
            with contextlib.suppress(RuntimeFailure):
                stop(run_id, connection)
            raise
    if beginning.given_up and not ended.completed:
        raise RuntimeFailure(f"{beginning.given_up} The run was stopped.")
    return ended


class _Beginning:
    """Sees whether anybody begins with a run; parameters as for :func:`wait`."""

    def __init__(self, run_id: str, connection: Connection, on_line: Callable[[str], None]) -> None:
        self._run_id = run_id
        self._connection = connection
        self._on_line = on_line
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._since = time.monotonic()
        self._told = False
        self.given_up = ""

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def take(self, line: str) -> None:
        """Hand a line of the run's log on."""
        with self._lock:
            self._on_line(line)

    def _watch(self) -> None:
        """Look until the run has begun, and say so while it has not."""
        while not self._over.wait(_PENDING_LOOK_SECONDS):
            # Flower that cannot be reached is for those who follow the run.
            with contextlib.suppress(RuntimeFailure):
                if self._look():
                    return

    def _look(self) -> bool:
        """Return whether there is nothing more to look for."""
        rows = _flwr(self._connection, "list", self._connection.name).get("runs", [])
        mine = [row for row in rows if row.get("run-id") == self._run_id]
        if not mine or mine[0]["status"] not in _PENDING:
            return True
        if any(row["status"] == "running" for row in rows):
            self._since = time.monotonic()  # it may wait for its turn
            return False
        waited = time.monotonic() - self._since
        if waited < _PENDING_TOLD_SECONDS:
            return False
        missing = (
            f"Nobody has begun with the run for {waited:.0f} s. Probably no executor runs beside "
            "the SuperLink: with `--isolation process` start `flower-superexec` there, and look at "
            "its log and at the SuperLink's (docs/deployment.md)."
        )
        if waited >= _PENDING_MOST_SECONDS:
            self.given_up = missing
            stop(self._run_id, self._connection)
            return True
        if not self._told:
            self._told = True
            with self._lock:
                minutes = _PENDING_MOST_SECONDS / 60
                self._on_line(f"WARNING : {missing} It is given up after {minutes:.0f} minutes.")
        return False


def _wait(run_id: str, connection: Connection, on_line: Callable[[str], None]) -> RunStatus:
    seen = failures = 0
    while True:
        seen = follow(run_id, connection, on_line, skip=seen)
        try:
            current = status(run_id, connection)
            failures = 0
        except RuntimeFailure:
            failures += 1
            if failures == _RETRIES:
                raise
        else:
            if current.finished:
                return current
        time.sleep(_RETRY_SECONDS)


_Row = TypedDict("_Row", {"run-id": str, "status": str, "status-details": str})
_Answer = TypedDict(
    "_Answer",
    {"success": bool, "error-message": str, "run-id": str, "runs": list[_Row]},
    total=False,
)


def _flwr(connection: Connection, *arguments: str) -> _Answer:
    """Run one `flwr` command and return its JSON answer."""
    said = f"`flwr {arguments[0]}` on the connection '{connection.name}'"
    try:
        done = subprocess.run(
            [*_command(connection, *arguments), "--format", "json"],
            cwd=connection.folder,
            env=dict(connection.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeFailure(f"{said} did not answer in {_COMMAND_SECONDS:.0f} s.") from None
    answer = _first_object(done.stdout)
    if done.returncode or answer is None or not answer.get("success"):
        message = (answer or {}).get("error-message") or f"{done.stdout}\n{done.stderr}"
        details = _COLOUR.sub("", message).strip()
        reason = _unreachable(connection) if "unavailable" in details.lower() else ""
        raise RuntimeFailure(f"{said} failed:", f"{details} {reason}".strip())
    return answer


def _unreachable(connection: Connection) -> str:
    """Return why the SuperLink of a connection cannot be reached, "" if nobody knows."""
    path = Path(connection.environment.get("FLWR_HOME") or Path.home() / ".flwr", "config.toml")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))["superlink"][connection.name]
        address, insecure = str(found["address"]), bool(found.get("insecure", False))
        given = found.get("root-certificates")
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    authority = path.parent / Path(str(given)).expanduser() if given else None
    return trouble(address, tls=not insecure, authority=authority)


def _first_object(text: str) -> _Answer | None:
    """Return the first JSON object in ``text``: warnings of libraries may stand around it."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError:
        return None
    return cast(_Answer, found)


def _command(connection: Connection, *arguments: str) -> list[str]:
    found = shutil.which("flwr", path=connection.environment.get("PATH"))
    if found is None:
        raise RuntimeFailure(
            "The command `flwr` is not found. Install fedprune's dependencies in this "
            "environment (`make install`)."
        )
    return [found, *arguments]
