"""Where a run is, for its operator: the file `progress.json`, how it is written and read.

Strategies tell :class:`RunStatus` what happens, which costs them next to nothing. A thread puts it
into the run's folder, at most once a second: also while a block is aggregated or a model is
evaluated, so that a file that is not written any more tells of a process that is not there.

The file holds names, counts, times and reasons; nothing of texts, and not the key by which nodes
find what they keep of the run.
"""

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, TypeAdapter

from fedprune.disk import replace_file
from fedprune.errors import ConfigError, FedpruneError
from fedprune.results.ledger import GONE, KINDS, Entry, Ledger, refusal_kind, strays

PROGRESS = "progress.json"
VERSION = 1
STATES = ("waiting", "working", "answered", "lost", "refused")
BEAT_SECONDS = 10.0
"""The file is written at least so often while its process lives."""

_QUIET_BEATS = 6  # computing can hold the writer up for a while


@dataclass(frozen=True)
class ClientLine:
    """One client: its name, one of :data:`STATES`, since when (UTC), and why it is left out."""

    name: str
    state: str
    since: str
    reason: str = ""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Status:
    """Where a run is."""

    run: str
    status: str = "running"
    reason: str = ""  # why it failed; "" otherwise
    # phase, phase_done, phase_total, details: as in the lines of its log
    phase: str = "load"
    phase_done: int = 0
    phase_total: int = 1
    details: list[str] = field(default_factory=list)
    # round, rounds: which round over all blocks; 0 before the first
    round: int = 0
    rounds: int = 0
    # blocks_done, blocks_total: pruned blocks, all rounds together
    blocks_done: int = 0
    blocks_total: int = 0
    # answered, asked: messages of the exchange under way
    answered: int = 0
    asked: int = 0
    states: Mapping[str, int] = field(default_factory=dict)  # how many clients are in which state
    # the clients, at most a few dozen: those that need attention first
    clients: list[ClientLine] = field(default_factory=list)
    nodes_alive: int | None = None  # nodes that Flower sees; None before it was asked
    # bytes_up, bytes_down: received from and sent to all clients, but for those that brought them
    # the model
    bytes_up: int = 0
    bytes_down: int = 0
    model_bytes: int = 0  # sent to bring them the model
    # kind (`fedprune.results.ledger`) -> replies that were not used
    refused: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0  # work so far, in all processes of the run
    # about how long the pruning still takes; None while there is no measure
    eta_seconds: float | None = None
    starts: int = 1  # processes that worked on the run: more than one after interruptions
    # started, updated: UTC, ISO 8601
    started: str = ""
    updated: str = ""
    beat_seconds: float = BEAT_SECONDS  # the file is written at least so often
    # host, pid: the process that writes it
    host: str = ""
    pid: int = 0
    version: int = VERSION

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_json(self) -> str:
        """Return the file's text: ASCII, so that no name in it can steer a terminal."""
        plain = asdict(self)
        return json.dumps({"version": plain.pop("version"), **plain}, indent=1) + "\n"

    def quiet_seconds(self, now: datetime) -> float:
        """Return how long the file has not been written."""
        return max(0.0, (now - moment(self.updated)).total_seconds())

    def stale(self, now: datetime) -> bool:
        """Whether the run should be going, and its process is not there or says nothing."""
        if self.status != "running":
            return False
        gone = self.host == socket.gethostname() and not _alive(self.pid)
        return gone or self.quiet_seconds(now) > _QUIET_BEATS * self.beat_seconds


def moment(text: str) -> datetime:
    """Return the time that a status gives; ValueError if it is none."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def read_status(folder: Path) -> Status:
    """Return where the run in a folder is.

    Raises ConfigError if the folder is not there or not a run's. Raises FedpruneError if the file
    is damaged or of another version.
    """
    path = folder / PROGRESS
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        what = f"has no `{PROGRESS}`" if folder.exists() else "is not there"
        raise ConfigError(
            f"RUN must be the folder of a run that has begun, '{folder}' {what}. The folder of a "
            "run on a SuperLink is on the machine of its ServerApp."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FedpruneError(f"'{path}' cannot be read: {error}.") from None
    return _parsed(text, path)


def _parsed(text: str, path: Path) -> Status:
    try:
        plain = json.loads(text)
        version = plain["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise FedpruneError(
            f"'{path}' is damaged; a run that goes writes it anew within {BEAT_SECONDS:g} s."
        ) from None
    if version != VERSION:
        raise FedpruneError(
            f"`version` in '{path}' must be {VERSION}, got {str(version)[:20]!r}: another version "
            "of fedprune writes it. Use that one."
        )
    try:
        found = TypeAdapter(Status).validate_json(text, strict=True)
        moment(found.started), moment(found.updated)
    except ValueError as error:
        raise FedpruneError(f"'{path}' is damaged: {type(error).__name__}.") from None
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return pid > 0


_WRITE_SECONDS = 1.0
_COUNT_SECONDS = 15.0
_LISTED_CLIENTS = 64  # listed; all are counted
_REASON_LENGTH = 300
_URGENT = ("refused", "lost", "working", "waiting", "answered")


class RunStatus:
    """What is known of a run, and its file.

    Used as a context manager while the run goes; what ends the body of the `with` statement is
    what the file says of the run's end.

    `folder`: the run's folder; without it nothing is written. `connected`: returns how many nodes
    are connected. Asked seldom and from a thread of its own, since it waits where the SuperLink
    does not answer.
    """

    def __init__(
        self, folder: Path | None = None, connected: Callable[[], int] | None = None
    ) -> None:
        self._folder = folder
        self._connected = connected
        self._counted: float | None = None
        self._counting: threading.Thread | None = None
        self._clients: dict[str, ClientLine] = {}
        self._refused: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._news, self._closed = threading.Event(), threading.Event()
        self._writer = threading.Thread(target=self._write_in_time, name="progress", daemon=True)
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
        self._put_client(ClientLine(name, "working", _now()))

    def note(self, entry: Entry) -> None:
        """Tell of a reply, or of why there is none."""
        state = "answered" if entry.phase not in ("handshake", "model") else "waiting"
        if entry.refused:
            kind = refusal_kind(entry)
            state = "lost" if kind in GONE else "refused"
            self._refused[kind] += strays(entry) or 1
        if not strays(entry):
            self._put_client(
                ClientLine(entry.client, state, _now(), entry.refused[:_REASON_LENGTH])
            )
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

    def __exit__(self, _: object, error: BaseException | None, *more: object) -> None:
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
            clients=clients[:_LISTED_CLIENTS],
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

    def _put_client(self, client: ClientLine) -> None:
        with self._lock:
            self._clients[client.name] = client
        self._news.set()

    def _write_in_time(self) -> None:
        while not self._closed.wait(_WRITE_SECONDS):
            self._news.wait(BEAT_SECONDS)
            self._news.clear()
            self._count_nodes()
            self._write()

    def _count_nodes(self) -> None:
        now = time.monotonic()
        recent = self._counted is not None and now - self._counted < _COUNT_SECONDS
        busy = self._counting is not None and self._counting.is_alive()
        if self._connected is None or recent or busy:
            return
        self._counted = now
        self._counting = threading.Thread(target=self._count, name="connected", daemon=True)
        self._counting.start()

    def _count(self) -> None:
        found = None
        with suppress(Exception):  # the runtime's own, of many kinds: then nobody knows
            found = self._connected() if self._connected else None
        self._change(nodes_alive=found)

    def _write(self, lasting: bool = False) -> None:
        if self._folder is not None:
            with suppress(OSError):  # a full disk is the run's business
                data = self.now.to_json().encode()
                replace_file(self._folder / PROGRESS, data, lasting=lasting)


@dataclass
class WatchedLedger(Ledger):
    """A ledger that tells a run's status of what is added."""

    status: RunStatus = field(default_factory=RunStatus)

    def add(self, entry: Entry) -> None:
        """Append one entry, and tell of it."""
        super().add(entry)
        self.status.note(entry)


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
