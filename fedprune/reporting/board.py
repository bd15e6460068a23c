"""What an operator can see of a run while it goes: kept in memory, written now and then.

Strategies tell it what happens, which costs them next to nothing. A thread puts it into the run's
folder, at most once a second: also while a block is aggregated or a model is evaluated, so that a
file that is not written any more tells of a process that is not there.
"""

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from fedprune.disk import replace_file
from fedprune.errors import FedpruneError
from fedprune.reporting.ledger import Entry, Ledger
from fedprune.reporting.refusals import GONE, KINDS, refusal_kind, strays
from fedprune.reporting.status import (
    BEAT_SECONDS,
    PROGRESS,
    STATES,
    ClientLine,
    Status,
    read_status,
)

_LEAST_SECONDS = 1.0
_CENSUS_SECONDS = 15.0
_MOST_CLIENTS = 64  # listed; all are counted
_MOST_REASON = 300
_URGENT = ("refused", "lost", "working", "waiting", "answered")


class Board:
    """What is known of a run, and its file.

    Used as a context manager while the run goes; what ends the body of the `with` statement is
    what the file says of the run's end.

    Parameters
    ----------
    folder : Path, optional
        The run's folder; without it nothing is written.
    census : Callable, optional
        Returns how many nodes are connected. Asked seldom and from a thread of its own, since it
        waits where the SuperLink does not answer.
    """

    def __init__(self, folder: Path | None = None, census: Callable[[], int] | None = None) -> None:
        self._folder = folder
        self._census = census
        self._counted: float | None = None
        self._counting: threading.Thread | None = None
        self._clients: dict[str, ClientLine] = {}
        self._refused: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._news, self._closed = threading.Event(), threading.Event()
        self._writer = threading.Thread(target=self._keep, name="progress", daemon=True)
        self._begun, self._before = time.monotonic(), 0.0
        self._ends_at: float | None = None
        self._status = Status("" if folder is None else folder.name, started=_now())

    def show(self, phase: str, done: int, total: int, details: Iterable[str] = ()) -> None:
        """Tell the phase, and how much of it is done."""
        self._change(phase=phase, phase_done=done, phase_total=total, details=list(details))

    def answers(self, answered: int, asked: int) -> None:
        """Tell how many messages of an exchange have been answered, and of how many."""
        self._change(answered=answered, asked=asked)

    def pruned(self, done: int, total: int, place: tuple[int, int], left: float | None) -> None:
        """Tell how many blocks of all rounds are pruned.

        ``place`` is the round and of how many, ``left`` the seconds that the rest may take.
        """
        number, rounds = place
        self._ends_at = None if left is None else time.monotonic() + left
        self._change(blocks_done=done, blocks_total=total, round=number, rounds=rounds)

    def expect(self, names: Iterable[str]) -> None:
        """Begin an exchange with these clients; of others only those left out stay listed."""
        now = _now()
        with self._lock:
            out = {n: c for n, c in self._clients.items() if c.state in ("lost", "refused")}
            self._clients = out | {name: ClientLine(name, "waiting", now) for name in names}
        self._news.set()

    def asked(self, name: str) -> None:
        """Tell that a client has its request."""
        self._place(ClientLine(name, "working", _now()))

    def note(self, entry: Entry) -> None:
        """Tell of a reply, or of why there is none."""
        state = "answered" if entry.phase not in ("handshake", "model") else "waiting"
        if entry.refused:
            kind = refusal_kind(entry)
            state = "lost" if kind in GONE else "refused"
            self._refused[kind] += strays(entry) or 1
        if not strays(entry):
            self._place(ClientLine(entry.client, state, _now(), entry.refused[:_MOST_REASON]))
        status = self._status
        if entry.phase == "model":
            self._change(model_bytes=status.model_bytes + entry.bytes_down)
        else:
            up, down = status.bytes_up + entry.bytes_up, status.bytes_down + entry.bytes_down
            self._change(bytes_up=up, bytes_down=down)

    def catch_up(self, ledger: Ledger) -> None:
        """Take what earlier processes of the run have noted."""
        for entry in ledger.entries:
            self.note(entry)

    def __enter__(self) -> Self:
        """Begin to write; a file that an earlier process of the run left is gone on with."""
        if self._folder is not None:
            with suppress(FedpruneError):
                earlier = read_status(self._folder)
                self._before = earlier.seconds
                self._change(started=earlier.started, starts=earlier.starts + 1)
            self._count_nodes()
            self._write()
            self._writer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write how the run ended."""
        self._closed.set()
        self._news.set()
        if self._folder is None:
            return
        self._writer.join()
        self._ends_at = None
        if error is None:
            self.show("done", 1, 1)
        self._change(status="failed" if error else "done", reason=_reason(error))
        self._write(lasting=True)

    @property
    def now(self) -> Status:
        """What the file would say now."""
        with self._lock:
            clients, refused = list(self._clients.values()), self._refused.copy()
        counts = Counter(client.state for client in clients)
        clients.sort(key=lambda client: (_URGENT.index(client.state), client.since))
        clock, ends_at = time.monotonic(), self._ends_at
        return replace(
            self._status,
            states={state: counts[state] for state in STATES},
            clients=clients[:_MOST_CLIENTS],
            refused={kind: refused[kind] for kind in KINDS if refused[kind]},
            seconds=round(self._before + clock - self._begun, 1),
            eta_seconds=None if ends_at is None else round(max(0.0, ends_at - clock), 1),
            updated=_now(),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def _change(self, **values: object) -> None:
        with self._lock:
            self._status = replace(self._status, **values)  # type: ignore[arg-type]
        self._news.set()

    def _place(self, client: ClientLine) -> None:
        with self._lock:
            self._clients[client.name] = client
        self._news.set()

    def _keep(self) -> None:
        while not self._closed.wait(_LEAST_SECONDS):
            self._news.wait(BEAT_SECONDS)
            self._news.clear()
            self._count_nodes()
            self._write()

    def _count_nodes(self) -> None:
        now = time.monotonic()
        recent = self._counted is not None and now - self._counted < _CENSUS_SECONDS
        busy = self._counting is not None and self._counting.is_alive()
        if self._census is None or recent or busy:
            return
        self._counted = now
        self._counting = threading.Thread(target=self._count, name="census", daemon=True)
        self._counting.start()

    def _count(self) -> None:
        found = None
        with suppress(Exception):  # the runtime's own, of many kinds: then nobody knows
            found = self._census() if self._census else None
        self._change(nodes_alive=found)

    def _write(self, lasting: bool = False) -> None:
        if self._folder is not None:
            with suppress(OSError):  # a full disk is the run's business
                data = self.now.to_json().encode()
                replace_file(self._folder / PROGRESS, data, lasting=lasting)


@dataclass
class WatchedLedger(Ledger):
    """A ledger that tells a board of what is added."""

    board: Board = field(default_factory=Board)

    def add(self, entry: Entry) -> None:
        """Append one entry, and tell of it."""
        super().add(entry)
        self.board.note(entry)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _reason(error: BaseException | None) -> str:
    """Return why a run ended: our own errors say so, of others the type is told."""
    if error is None:
        return ""
    if isinstance(error, FedpruneError):
        return str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "it was stopped"
    return f"{type(error).__name__}; the log has more"
