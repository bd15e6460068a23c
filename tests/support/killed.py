"""Jobs in processes of their own, which kill themselves at a chosen moment.

Run as a program, it has everything loaded, by a job of its own, and forks a process for every job
that it reads from standard input, so that a job starts in no time.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_CALLS = ("replace", "fsync", "unlink", "mkdir", "truncate")


class Workshop:
    """Starts the jobs."""

    def __init__(self, log: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.killed", str(log)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def job(self, overrides: str, clients: int, moment: int = 0) -> tuple[int, int]:
        """Run a job; return its exit status as subprocess does, and how many moments it had.

        `moment`: when to kill it, from 1: a write that is about to be made good, or a message that
        is about to be sent or has been answered; 0 lets it live.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([overrides, clients, moment]) + "\n")
        self._process.stdin.flush()
        status, moments = json.loads(self._process.stdout.readline())
        return status, moments


def _serve(log: Path) -> None:
    # A kill leaves to the system what it has been given: nothing needs to reach the disk.
    os.fsync = lambda descriptor: None
    with tempfile.TemporaryDirectory() as folder:
        _warm_up(Path(folder) / "run")
    # Once and for all: sources may be edited meanwhile, and a run goes on with its own only.
    importlib.import_module("fedprune.results.environment").source_digest()
    for line in sys.stdin:
        overrides, clients, moment = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os._exit(_work(overrides, clients, moment, writing))
        os.close(writing)
        moments = os.read(reading, 100)
        os.close(reading)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), int(moments or 0)]) + "\n")
        sys.stdout.flush()


def _warm_up(folder: Path) -> None:
    """Load what jobs load late, by one on another model and other texts."""
    from client_app.app import app
    from server_app.job import run_job
    from tests.support.grid import LocalGrid
    from tests.support.jobs import QUIET

    importlib.import_module("fedprune.methods.fedspallm.average")
    importlib.import_module("flwr_datasets")
    with contextlib.redirect_stdout(sys.stderr):
        run_job(LocalGrid(app, 1), {"overrides": " ".join([*QUIET, f"output_dir={folder}"])}, 1)


def _work(overrides: str, clients: int, moment: int, writing: int) -> int:
    from client_app.app import app
    from server_app.job import run_job
    from strategies import state as saving
    from tests.support.grid import LocalGrid

    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    class Grid(LocalGrid):
        def deliver(self, message):
            tick()
            reply = super().deliver(message)
            tick()
            return reply

    # Sums are saved after every reply.
    saving.LEAST_SECONDS = saving._SHARE = 0
    for name in _CALLS:
        setattr(os, name, _ticking(tick, getattr(os, name)))
    try:
        run_job(Grid(app, clients), {"overrides": overrides}, os.getpid())
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        os.write(writing, str(count).encode())
    return 0


def _ticking(tick: Callable[[], None], call: Callable[..., object]) -> Callable[..., object]:
    def called(*args, **kwargs):
        tick()
        return call(*args, **kwargs)

    return called


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _serve(Path(sys.argv[1]))
