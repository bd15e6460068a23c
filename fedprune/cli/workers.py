"""Processes that run inline jobs side by side, each with its share of the processors.

They outlive neither the command line nor its interruption: Ctrl-C is the parent's to answer, who
tells them to end, and a worker whose parent has died ends by itself.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType, TracebackType
from typing import NoReturn, Self, cast

from fedprune.cli.job import Ended, Job, perform
from fedprune.cli.progress import ProgressView
from fedprune.flower.command import Connection, RunStatus
from fedprune.results.progress import Progress

_CONTEXT = multiprocessing.get_context("spawn")
_THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
_END_SECONDS = 10.0


News = tuple[int, Progress | str | Ended]
"""A job's place, and how far it is, a warning for the screen, or at last how it ended."""


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    pipe: Pipe


class Workers:
    """A few processes that are handed one job after another.

    Parameters
    ----------
    count : int
        How many.
    threads : int
        Processor threads of each; the user's own settings in the environment go before it.
    """

    def __init__(self, count: int, threads: int) -> None:
        self._count = count
        self._threads = threads
        self._idle: list[_Worker] = []
        self._busy: dict[Pipe, tuple[_Worker, int, Job]] = {}

    def __enter__(self) -> Self:
        """Start the processes."""
        self._idle = [self._start() for _ in range(self._count)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them, also in the middle of a job; what a job has written until then stays."""
        everyone = [*self._idle, *(worker for worker, _, _ in self._busy.values())]
        for worker in everyone:
            worker.process.terminate()
        for worker in everyone:
            worker.process.join(_END_SECONDS)
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()

    def run(self, jobs: Iterable[tuple[int, Job]]) -> Iterator[News]:
        """Run prepared jobs and yield their news as they come.

        Parameters
        ----------
        jobs : iterable of (int, Job)
            Place and job; each is taken when there is a worker for it.
        """
        todo = iter(jobs)
        while True:
            while self._idle and (found := next(todo, None)) is not None:
                self._hand_out(*found)
            if not self._busy:
                return
            for pipe in wait(list(self._busy)):
                yield self._hear(cast(Pipe, pipe))

    def _hand_out(self, place: int, job: Job) -> None:
        worker = self._idle.pop()
        self._busy[worker.pipe] = (worker, place, job)
        with contextlib.suppress(BrokenPipeError):  # then hearing of it tells why
            worker.pipe.send(job)

    def _hear(self, pipe: Pipe) -> News:
        worker, place, job = self._busy[pipe]
        told: Progress | str | Ended
        try:
            told = pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            told = Ended(RunStatus("failed", _death(worker.process.exitcode)), "", job.folder, "")
            pipe.close()
            worker = self._start()
        if isinstance(told, Ended):
            del self._busy[pipe]
            self._idle.append(worker)
        return place, told

    def _start(self) -> _Worker:
        mine, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_work, args=(theirs,), daemon=True)
        with _thread_limit(self._threads), _deaf_to_interrupts():
            process.start()
        theirs.close()
        return _Worker(process, mine)


def _death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed. Usually there was too little memory: lower --jobs."
    return f"its process ended with exit code {code}."


@contextlib.contextmanager
def _thread_limit(threads: int) -> Iterator[None]:
    """Let processes that are started meanwhile use so many threads.

    Libraries read these when they are loaded, so they must be there from the beginning.
    """
    ours = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, str(threads)))
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that are started meanwhile ignore Ctrl-C from their first instruction."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _PipeView:
    """Sends to the parent what a person shall see."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def stage(self, text: str) -> None:
        """Say nothing: a worker's stages last no time."""

    def update(self, progress: Progress) -> None:
        """Send the progress."""
        self._pipe.send(progress)

    def note(self, text: str) -> None:
        """Send the line."""
        self._pipe.send(text)


def _work(pipe: Pipe) -> None:
    """Run jobs until the parent ends this process or is gone."""
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # An interrupted job takes its files away before the process ends.
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            job = pipe.recv()
            ended = perform(job, _PipeView(pipe), _no_superlink)
            pipe.send(ended)
            if ended.status.state == "interrupted":
                return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _no_superlink(job: Job, view: ProgressView) -> contextlib.AbstractContextManager[Connection]:
    raise RuntimeError("only inline jobs run in a worker")
