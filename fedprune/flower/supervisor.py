"""A process that outlives the command line by a moment and ends all that Flower has started.

Flower's SuperLink, SuperExec, simulation and Ray start one another in sessions of their own, so no
process group holds them all, and a command line that is killed cannot tidy up. The supervisor
starts the SuperLink and waits until its standard input closes, which the operating system does even
when the command line dies by SIGKILL. It is run by path, imports nothing of this project and lies
in a session of its own, so that Ctrl-C never reaches it. Without it: a killed command line leaves a
SuperLink, a simulation and Ray's workers behind that go on computing.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil

MARK = "FEDPRUNE_SUPERLINK"
"""Environment variable that every process of one private SuperLink inherits: its folder."""

_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.2
_PR_SET_CHILD_SUBREAPER = 36


def remaining(folder: str) -> set[psutil.Process]:
    """Return the living processes that belong to the private SuperLink in ``folder``.

    They are found by environment and by descent: some of Ray's helpers overwrite the memory that
    holds their environment, and an orphan has lost its parent, but none has lost both.
    """
    me = psutil.Process()
    found: set[psutil.Process] = set()
    for process in [*_descendants(me), *_marked(folder)]:
        if process != me:
            found.update([process, *_descendants(process)])
    return {process for process in found if _alive(process)}


def end_all(folder: str) -> None:
    """Kill every process that belongs to the private SuperLink in ``folder``.

    Nothing is asked to end politely: all they could save lies in the folder, which goes too.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (found := remaining(folder)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(list(found), timeout=_POLL_SECONDS)
    _reap()


def main(arguments: list[str]) -> int:
    """Keep commands running in ``FOLDER/work`` until standard input closes or one ends itself.

    `arguments`: ``[FOLDER, COMMAND, ...]``, and after ``--`` another command that runs beside it.
    Returns 0 after standard input closed, when the folder is gone; 1 when a command ended by
    itself, when the folder stays because it holds the log that says why.
    """
    folder, *words = arguments
    at = words.index("--") if "--" in words else len(words)
    commands = [command for command in (words[:at], words[at + 1 :]) if command]
    _adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    children = [
        subprocess.Popen(command, cwd=Path(folder, "work"), stdin=subprocess.DEVNULL)
        for command in commands
    ]
    released = True
    try:
        while not _standard_input_closed(_POLL_SECONDS):
            if any(child.poll() is not None for child in children):
                released = False
                break
    finally:
        end_all(folder)
        if released:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if released else 1


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _adopt_orphans() -> None:
    # On Linux a grandchild whose parent died then becomes this process's child, not init's.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap() -> None:
    # The adopted dead would be left to init, which a container may not have.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _standard_input_closed(seconds: float) -> bool:
    readable, _, _ = select.select([0], [], [], seconds)
    return bool(readable) and not os.read(0, 1)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        children = process.children(recursive=True)
    return children


def _marked(folder: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == folder:
                yield process


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
