"""The file that tells an operator where a run is: its form, and how it is read.

It is written by :class:`fedprune.reporting.board.Board`. It holds names, counts, times and reasons;
nothing of texts, and not the key by which nodes find what they keep of the run.
"""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedprune.errors import ConfigError, FedpruneError

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


@dataclass(frozen=True)
class Status:
    """Where a run is.

    Attributes
    ----------
    run : str
        Name of its folder.
    status : str
        "running", "failed" or "done".
    reason : str
        Why it failed; "" otherwise.
    phase, phase_done, phase_total, details : str, int, int, list of str
        As in the lines of its log.
    round, rounds : int
        Which round over all blocks; 0 before the first.
    blocks_done, blocks_total : int
        Pruned blocks, all rounds together.
    answered, asked : int
        Messages of the exchange under way.
    states : Mapping[str, int]
        How many clients are in which state.
    clients : list of ClientLine
        The clients, at most a few dozen: those that need attention first.
    nodes_alive : int or None
        Nodes that Flower sees; None before it was asked.
    bytes_up, bytes_down : int
        Received from and sent to all clients, but for those that brought them the model.
    model_bytes : int
        Sent to bring them the model.
    refused : Mapping[str, int]
        Kind (:mod:`fedprune.reporting.refusals`) -> replies that were not used.
    seconds : float
        Work so far, in all processes of the run.
    eta_seconds : float or None
        About how long the pruning still takes; None while there is no measure.
    starts : int
        Processes that worked on the run: more than one after interruptions.
    started, updated : str
        UTC, ISO 8601.
    beat_seconds : float
        The file is written at least so often.
    host, pid : str, int
        The process that writes it.
    version : int
        Of this form.
    """

    run: str
    status: str = "running"
    reason: str = ""
    phase: str = "load"
    phase_done: int = 0
    phase_total: int = 1
    details: list[str] = field(default_factory=list)
    round: int = 0
    rounds: int = 0
    blocks_done: int = 0
    blocks_total: int = 0
    answered: int = 0
    asked: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    clients: list[ClientLine] = field(default_factory=list)
    nodes_alive: int | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    model_bytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    eta_seconds: float | None = None
    starts: int = 1
    started: str = ""
    updated: str = ""
    beat_seconds: float = BEAT_SECONDS
    host: str = ""
    pid: int = 0
    version: int = VERSION

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

    Raises
    ------
    ConfigError
        If the folder is not there or not a run's.
    FedpruneError
        If the file is damaged or of another version.
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
        return _checked(plain)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FedpruneError(f"'{path}' is damaged: {type(error).__name__}.") from None


def _checked(plain: Mapping[str, Any]) -> Status:
    defaults = Status("")
    for key, value in plain.items():
        expected = type(getattr(defaults, key))
        allowed = {type(None): int | float | None, float: int | float}.get(expected, expected)
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise TypeError(key)
    clients = [ClientLine(**one) for one in plain["clients"]]
    for client in clients:
        if not all(isinstance(value, str) for value in vars(client).values()):
            raise TypeError("clients")
    found = Status(**{**plain, "clients": clients})
    counts = [*found.states.values(), *found.refused.values()]
    if not all(type(count) is int for count in counts):
        raise TypeError("counts")
    moment(found.started), moment(found.updated)
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return pid > 0
