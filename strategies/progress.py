"""Progress lines of the rounds: few enough for a log, whole enough to tell where a run is."""

import time
from collections.abc import Callable
from logging import INFO

from flwr.common.logger import log

from fedprune.config import RunConfig
from fedprune.results.ledger import Ledger
from fedprune.results.progress import Pace, Progress
from fedprune.results.run_status import RunStatus
from fedprune.results.text import duration_text, size_text

Report = Callable[[int, int], None]
"""Told after each answer, or after each block: how many there are, and of how many."""

_QUIET_SECONDS = 5.0


def show(status: RunStatus, phase: str, done: int, total: int, *details: str) -> None:
    """Log one line of progress, and put it on the status."""
    status.show(phase, done, total, details)
    log(INFO, Progress(phase, done, total, details).line())


class Course:
    """Tells how far the pruning is, in all rounds together, in the log and on the status."""

    def __init__(
        self,
        blocks: int,
        rounds: int,
        ledger: Ledger,
        status: RunStatus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blocks = blocks
        self._rounds = rounds
        self._ledger = ledger
        self._status = status
        self._clock = clock
        self._pace = Pace(clock)
        self._origin: tuple[float, float] | None = None

    def pruning(self, blocks: range, number: int) -> Report:
        """Return what to tell after each answer about ``blocks`` in round ``number``, from 1."""
        span = f"{blocks.start + 1}-{blocks.stop}" if len(blocks) > 1 else f"{blocks.stop}"
        where = [f"round {number}/{self._rounds}"] if self._rounds > 1 else []
        where.append(f"block {span}/{self._blocks}")
        before = (number - 1) * self._blocks + blocks.start
        total = self._rounds * self._blocks

        def report(answered: int, asked: int) -> None:
            done = before + len(blocks) * answered / max(1, asked)
            left = self._left(done / total)
            self._status.answers(answered, asked)
            self._status.pruned(int(done), total, (number, self._rounds), left)
            if not self._pace.due(done / total):
                return
            ledger = self._ledger
            traffic = f"{size_text(ledger.bytes_up)} up, {size_text(ledger.bytes_down)} down"
            answers = f"clients {answered}/{asked}"
            rest = [f"{duration_text(left)} left"] if left is not None else []
            show(self._status, "prune", int(done), total, *where, answers, *rest, traffic)

        return report

    def _left(self, share: float) -> float | None:
        """Return about how many seconds the rest takes, None before there is a measure."""
        now = self._clock()
        if self._origin is None:
            self._origin = (now, share)  # a resumed run starts in the middle
        begun, first = self._origin
        if share <= first or share >= 1.0:
            return None
        return (now - begun) * (1 - share) / (share - first)


def counting(status: RunStatus, phase: str, detail: str) -> Report:
    """Return what to tell after each answer of a client: few of them have a line."""
    told = paced(status, phase, detail)

    def report(answered: int, asked: int) -> None:
        status.answers(answered, asked)
        told(answered, asked)

    return report


def paced(status: RunStatus, phase: str, detail: str) -> Report:
    """Return what to tell after each step: few of them have a line."""
    pace = Pace()

    def report(done: int, total: int) -> None:
        if pace.due(done / max(1, total)):
            show(status, phase, done, total, detail)

    return report


def announce(name: str, config: RunConfig, blocks: int, messages: int, prunes: bool) -> None:
    """Log what a strategy is about to do."""
    least = config.strategy.min_clients
    if not prunes:
        text = (
            "%s: statistics of the dense model, %d blocks in %d messages each, at least %d clients"
        )
        log(INFO, text, name, blocks, messages, least)
        return
    log(
        INFO,
        "%s, %s: %s to sparsity %g (%s), %d blocks in %d messages each, at least %d clients",
        name,
        config.schedule.name,
        config.pruner.name,
        config.sparsity,
        config.pruner.pattern,
        blocks,
        messages,
        least,
    )


def measuring(
    status: RunStatus,
    number: int,
    steps: int,
    what: str,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Tell that a step of the evaluation begins; return what to tell after each of its blocks.

    Of blocks that follow each other quickly hardly one has a line.
    """
    show(status, "evaluate", number, steps, what)
    told = clock()

    def report(done: int, total: int) -> None:
        nonlocal told
        if done < total and clock() >= told + _QUIET_SECONDS:
            told = clock()
            where = f"block {done}/{total}"
            show(status, "evaluate", number * total + done, steps * total, what, where)

    return report
