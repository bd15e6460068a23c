"""Logs of both apps: as Flower writes them, or one JSON object a line with FEDPRUNE_LOG=json.

What an exception says may quote what it choked on, which on a node is private text. So of an
exception that is not ours only the type and the places in the code are logged, in either format;
``FEDPRUNE_DEBUG=1`` in a process's environment, its operator's choice, logs all of it.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from hashlib import sha256
from types import MappingProxyType

from fedprune.errors import FedpruneError

FORMAT, DEBUG = "FEDPRUNE_LOG", "FEDPRUNE_DEBUG"
FIELDS = ("role", "run", "folder", "job", "node", "block")
"""What a line may say of its place, beside time, level, logger and message."""

_FLOWER = "flwr"
_MOST_PLACES = 30
_place: ContextVar[Mapping[str, str | int]] = ContextVar(
    "fedprune-log", default=MappingProxyType({})
)


@contextmanager
def bound(**fields: str | int) -> Iterator[None]:
    """Say of all lines that are logged meanwhile where they come from, in :data:`FIELDS`."""
    token = _place.set({**_place.get(), **fields})
    try:
        yield
    finally:
        _place.reset(token)


def note(**fields: str | int) -> None:
    """Say more of the lines to come, until the surrounding :func:`bound` ends."""
    _place.set({**_place.get(), **fields})


def job_mark(key: str) -> str:
    """Return what logs call a job: the same on all machines, and no way to its key."""
    return sha256(key.encode()).hexdigest()[:8]


def json_wanted() -> bool:
    """Whether ``FEDPRUNE_LOG`` asks for JSON."""
    return os.environ.get(FORMAT, "").lower() == "json"


def described(error: BaseException) -> str:
    """Return the types of an exception and its causes, and the places; none of what they say."""
    parts = [f"{kind} at {' > '.join(places) or 'no place'}" for kind, places in _chain(error)]
    return "; caused by ".join(parts)


def log_failure(what: str, error: Exception) -> None:
    """Log an exception of which the other side hears the type only."""
    logger = logging.getLogger(_FLOWER)
    if _debug():
        logger.error(what, exc_info=error)
    else:
        logger.error("%s: %s", what, described(error))


class JsonFormatter(logging.Formatter):
    """Makes one line of JSON of a record, in ASCII, so that nothing in it steers a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        place = {
            **_place.get(),
            **{key: vars(record)[key] for key in FIELDS if key in vars(record)},
        }
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            **{key: place[key] for key in FIELDS if key in place},
            "message": record.getMessage().strip(),
        }
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = [{"type": kind, "at": places} for kind, places in _chain(error)]
            if isinstance(error, FedpruneError):
                line["text"] = str(error)
            if _debug():
                line["traceback"] = self.formatException((type(error), error, error.__traceback__))
        return json.dumps(line)


class _Lines(logging.Handler):
    """Writes each record as a line to what standard error is at that moment, in one piece."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, unless it is a blank line of a text."""
        if not record.getMessage().strip():
            return
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


class _Discreet(logging.Filter):
    """Takes from records what exceptions say, wherever it is not ours."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record with an exception; let all pass."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or _place.get().get("role") == "server" or _debug() or json_wanted():
            return True
        ours = isinstance(error, FedpruneError)  # without its cause, which may be another's
        said = f"{type(error).__name__}: {error}" if ours else described(error)
        record.msg, record.args = f"{record.getMessage()}: {said}", None
        record.exc_info, record.exc_text = None, None
        return True


def set_up(role: str) -> None:
    """Make this process log as ``FEDPRUNE_LOG`` says; called by each app when it is loaded.

    `role`: "server" or "client", for lines that say nothing of their place.
    """
    flower = logging.getLogger(_FLOWER)
    if role == "client" and not any(isinstance(one, _Discreet) for one in flower.filters):
        flower.addFilter(_Discreet())
    if not json_wanted():
        wanted = os.environ.get(FORMAT, "")
        if wanted.lower() not in ("", "text"):
            flower.warning("`%s` must be 'json' or 'text', got %r: text is logged.", FORMAT, wanted)
        return
    if "role" not in _place.get():
        note(role=role)
    logging.captureWarnings(True)
    levels = [one.level for one in flower.handlers if _on_screen(one)]
    for name in list(logging.root.manager.loggerDict):
        _hand_on(logging.getLogger(name))
    if not any(isinstance(one, _Lines) for one in logging.root.handlers):
        lines = _Lines(min(levels, default=logging.INFO))
        lines.setFormatter(JsonFormatter())
        logging.root.addHandler(lines)


def read_line(line: str) -> tuple[str, str] | None:
    """Return level and message of a line that :class:`JsonFormatter` made, None of another."""
    start = line.find("{")  # Ray puts its worker's name before a line
    if start < 0 or not line.rstrip().endswith("}"):
        return None
    try:
        found = json.loads(line[start:])
        return str(found["level"]), str(found["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _hand_on(logger: logging.Logger) -> None:
    """Let a logger that writes to the screen itself leave that to the root."""
    for handler in logger.handlers[:]:
        if _on_screen(handler):
            logger.removeHandler(handler)
            logger.propagate = True


def _on_screen(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(
        handler, logging.FileHandler
    )


def _debug() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")


def _chain(error: BaseException) -> Iterator[tuple[str, list[str]]]:
    """Yield an exception and what it came from, each as type and places in the code."""
    found: BaseException | None = error
    for _ in range(_MOST_PLACES):
        if found is None:
            return
        frames = list(traceback.walk_tb(found.__traceback__))[-_MOST_PLACES:]
        names = [f"{frame.f_globals.get('__name__', '?')}:{line}" for frame, line in frames]
        yield type(found).__name__, names
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
