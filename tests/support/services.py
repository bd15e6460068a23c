"""Processes that stand for containers: started, killed, stopped and frozen with all they start."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

MARK = "FEDPRUNE_TEST"
"""Environment variable that every process of a service inherits: the file of its log."""

_PAUSE_SECONDS = 2.0
_POLL_SECONDS = 0.1
# Below the range from which systems take ports for outgoing connections.
_PORTS = (20000, 32000)


class Service:
    """One command that runs until it is ended, and what it starts.

    `command`: the command and its arguments; may be changed until it is started. `restart`: whether
    it is started again two seconds after it ended by itself or by :meth:`crash`, as a container's
    restart policy does.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        log: Path,
        restart: bool = False,
    ) -> None:
        self.command = list(command)
        self.environment = {**environment, MARK: str(log)}
        self.starts = 0
        self._folder = folder
        self._log = log
        self._restart = restart
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = threading.Event()
        self._lock = threading.RLock()

    def start(self) -> None:
        """Start it, if it is not running."""
        with self._lock:
            if self.alive:
                return
            self._wanted.set()
            self.starts += 1
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self.command,
                    cwd=self._folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if self._restart:
                watch = threading.Thread(target=self._supervise, args=(self._process,), daemon=True)
                watch.start()

    def kill(self) -> None:
        """Kill it and all it has started with SIGKILL; it stays down until started."""
        self._wanted.clear()
        self.crash()

    def crash(self) -> None:
        """Kill it and all it has started with SIGKILL, and leave the rest to its policy."""
        with self._lock:
            deadline = time.monotonic() + 10
            while (found := self.processes()) and time.monotonic() < deadline:
                _signal(found, signal.SIGKILL)
                psutil.wait_procs(found, timeout=_POLL_SECONDS)
            if self._process is not None:
                self._process.wait(10)

    def end(self, seconds: float = 20.0) -> int:
        """End it with SIGTERM, then what it leaves behind with SIGKILL; return its exit code."""
        self._wanted.clear()
        if self._process is None:
            raise RuntimeError("It was never started.")
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(seconds)
        self.kill()
        return self._process.wait(10)

    def wait(self, seconds: float = 60.0) -> int:
        """Wait until it ends by itself and return its exit code."""
        if self._process is None:
            raise RuntimeError("It was never started.")
        return self._process.wait(seconds)

    def pause(self) -> None:
        """Freeze it and all it has started."""
        _signal(self.processes(), signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on after :meth:`pause`."""
        _signal(self.processes(), signal.SIGCONT)

    def processes(self) -> list[psutil.Process]:
        """Return its living processes, orphans too: by session, and by environment."""
        leader = self._process.pid if self._process is not None else None
        mine = str(self._log)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and (
                    os.getsid(process.pid) == leader or process.environ().get(MARK) == mine
                ):
                    found.append(process)
        return found

    @property
    def alive(self) -> bool:
        """Whether its main process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _supervise(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
        time.sleep(_PAUSE_SECONDS)
        with self._lock:
            # A container takes with it what its main process leaves behind.
            if self._wanted.is_set() and self._process is process:
                self.crash()
                self.start()


class Command(subprocess.Popen[str]):
    """A command under way, its output in files."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path, env: dict[str, str]):
        self._files = (log.with_suffix(".out"), log.with_suffix(".err"))
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            super().__init__(command, cwd=folder, env=env, stdout=out, stderr=err, text=True)

    @property
    def out(self) -> str:
        """What it wrote to standard output so far."""
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        """What it wrote to standard error so far."""
        return self._files[1].read_text()


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    choice = random.SystemRandom()
    while True:
        port = choice.randrange(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    """Return whether somebody listens on a port of the loopback interface."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def until(happened: Callable[[], bool], seconds: float, what: str, poll: float = 0.1) -> None:
    """Wait until something has happened, at most so long."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"After {seconds:.0f} s still not: {what}.")
        time.sleep(poll)
