"""Inline jobs in processes of their own: what one leaves in memory or dies of is its own affair.

Each process is forked from one that has loaded torch already, so that it begins at once. Models of
collected statistics, which ask no clients anything, are made one after another in the same process:
what it has read of the dense model and compiled serves them all. None outlives the command line or
its interruption: Ctrl-C is the parent's to answer, who tells them to end, and one whose parent has
died ends by itself.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import cast

import fedprune
from fedprune.cli.job import Ended, Job, perform
from fedprune.cli.run import connect
from fedprune.flower.command import RunStatus

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["client_app.app", "server_app.job", "transformers.modeling_utils"])
_THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
_END_SECONDS = 10.0

Worker = tuple[ForkServerProcess, Pipe]
Started = tuple[ForkServerProcess, int, Job]


def run_each(
    jobs: Iterable[tuple[int, Job]], at_once: int, threads: int
) -> Iterator[tuple[int, str | Ended]]:
    """Run prepared inline jobs and yield their news as they come.

    `jobs`: place and job; each is taken when its turn has come. `threads`: processor threads of
    each; the user's own settings in the environment go before it. Yields a job's place, and a
    warning for the screen, or at last how it ended.
    """
    todo, running, idle = iter(jobs), dict[Pipe, Started](), list[Worker]()
    try:
        while True:
            while len(running) < at_once and (found := next(todo, None)) is not None:
                place, job = found
                process, pipe = _given(job, idle, threads)
                running[pipe] = (process, place, job)
            if not running:
                return
            for ready in wait(list(running)):
                pipe = cast(Pipe, ready)
                process, place, job = running[pipe]
                told = _heard(process, pipe, job)
                if isinstance(told, Ended):
                    del running[pipe]
                    if job.statistics and told.status.completed:
                        idle.append((process, pipe))
                    else:
                        _end([(process, pipe)])
                yield place, told
    finally:
        # Also in the middle of a job; what it has written until then stays.
        _end([*idle, *((process, pipe) for pipe, (process, _, _) in running.items())])


def _given(job: Job, idle: list[Worker], threads: int) -> Worker:
    """Give a job to a process that made another model of statistics, or to a new one."""
    while job.statistics and idle:
        process, pipe = idle.pop()
        with contextlib.suppress(OSError):  # it has died meanwhile
            pipe.send(job)
            return process, pipe
        _end([(process, pipe)])
    process, pipe = _start(threads)
    with contextlib.suppress(OSError):  # who listens to it is told
        pipe.send(job)
    return process, pipe


def _start(threads: int) -> Worker:
    mine, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_work, args=(theirs, dict(os.environ)), daemon=True)
    with _first_environment(threads), _deaf_to_interrupts():
        process.start()
    theirs.close()
    return process, mine


def _heard(process: ForkServerProcess, pipe: Pipe, job: Job) -> str | Ended:
    try:
        return cast(str | Ended, pipe.recv())
    except (EOFError, ConnectionResetError):
        process.join()
        return Ended(RunStatus("failed", _death(process.exitcode)), "", job.folder, "")


def _end(workers: list[Worker]) -> None:
    for process, _ in workers:
        process.terminate()
    for process, pipe in workers:
        process.join(_END_SECONDS)
        process.kill()
        process.join()
        pipe.close()


def _death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed. Usually there was too little memory: lower --jobs."
    return f"its process ended with exit code {code}."


@contextlib.contextmanager
def _first_environment(threads: int) -> Iterator[None]:
    """Give the process that all others are forked from, started once, what it reads when it starts.

    Libraries read their number of threads when they are loaded. Our packages are found wherever
    the user is, not others of their names in that folder.
    """
    root = str(Path(fedprune.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    ours = {name: str(threads) for name in _THREADS if name not in os.environ}
    before = dict(os.environ)
    os.environ.update(ours | {"PYTHONSAFEPATH": "1", "PYTHONPATH": path})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that are started meanwhile ignore Ctrl-C from their first instruction."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _PipeView:
    """Sends warnings to the parent, who reads the job's course in its folder."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def watch(self, folder: Path) -> None:
        """Do nothing."""

    def stage(self, text: str) -> None:
        """Do nothing: a stage lasts no time here."""

    def note(self, text: str) -> None:
        """Send the line."""
        self._pipe.send(text)


def _work(pipe: Pipe, environment: Mapping[str, str]) -> None:
    """Run the jobs that come until there are no more or the parent ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    # An interrupted job takes its files away before the process ends.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError, KeyboardInterrupt):
        while True:
            pipe.send(perform(pipe.recv(), _PipeView(pipe), connect))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
