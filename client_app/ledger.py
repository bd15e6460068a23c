"""The site's own record of everything that left it: append-only, each entry chained to the last.

An entry is on the disk before its answer leaves; where it cannot be written, nothing leaves. Each
entry has the hash of the one before, so that none can be changed, left out or put in between
without a trace; what is cut off at the end shows against a hash that was noted elsewhere.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from filelock import FileLock

from fedprune.errors import FedpruneError

NOTHING = "0" * 64
"""What the first entry is chained to."""

_BLOCK = 4096
_DAY = timedelta(days=1)


class LedgerError(FedpruneError):
    """A ledger that is damaged or cannot be written."""


class DailyLimitError(FedpruneError):
    """More would leave within 24 hours than may."""


@dataclass(frozen=True)
class Sent:
    """What left a node in one answer."""

    request: str  # the kind of request that was answered
    run: str  # Flower's number of the run
    job: str  # the job, which stays the same when a run goes on after a kill
    app: str  # SHA-256 of the sources that answered
    configuration: str  # SHA-256 of the configuration that the server sent; "" if there was none
    strategy: str  # `strategy.name` in it; "" if there was none
    sends: str  # what the job asks its nodes to send: masks, weights, sums, moments
    bytes: int  # length of the answer as it is serialised
    digest: str  # SHA-256 of the answer's object tree, as Flower identifies it
    error: str = ""  # the words of an answer that is an error; "" otherwise
    masked: bool = False  # whether it tells nothing without those of other clients: secure sums
    # what the noise in it guarantees for all that the run sends; 0 where there is none
    eps: float = 0.0


@dataclass(frozen=True)
class Entry(Sent):
    """What left a node, when, and its place in the chain."""

    number: int = 0
    time: str = ""  # when, by the node's clock, in UTC
    # whether the entry before it was cut off while it was written; its answer was not sent
    cut: bool = False
    previous: str = NOTHING  # hash of the entry before

    @property
    def hash(self) -> str:
        """SHA-256 of the entry, the hash of the one before included."""
        return hashlib.sha256(_line(self)).hexdigest()


def append(path: Path, sent: Sent, most_bytes: int | None = None) -> Entry:
    """Add an entry; it is on the disk when this returns.

    `most_bytes`: the most that may leave within 24 hours, this included. Raises LedgerError if it
    cannot be written, or its last entry is damaged. Raises DailyLimitError if it would be more than
    ``most_bytes``; then there is no entry.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (
            FileLock(path.with_name(f"{path.name}.lock")),
            open(path, "a+b", buffering=0, opener=_private) as file,
        ):
            size = os.fstat(file.fileno()).st_size
            lines = _backwards(file.fileno(), size)
            whole, line = size - len(next(lines)), next(lines, b"")
            last = _read(line) if line else None
            if most_bytes is not None:
                before = _sent_in_a_day(file.fileno(), whole)
                if before + sent.bytes > most_bytes:
                    raise DailyLimitError(
                        f"this answer has {sent.bytes:,} bytes, {before:,} left within 24 hours, "
                        f"and this site's standing policy allows {most_bytes:,} (`mb-per-day`)."
                    )
            entry = Entry(
                **asdict(sent),
                number=0 if last is None else last.number + 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                cut=whole < size,
                previous=NOTHING if last is None else last.hash,
            )
            file.truncate(whole)
            written = _line(entry) + b"\n"
            if file.write(written) != len(written):
                raise OSError("the disk took a part of the entry only")
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LedgerError(
            f"The ledger '{path}' cannot be added to ({why}), so nothing leaves this node. Mend "
            "that, or name another file by `ledger` in the node's --node-config.",
            outside="This node's ledger cannot be added to, so nothing leaves it. Its operator "
            "must mend that.",
        ) from error
    return entry


def sent_in_a_day(path: Path) -> int:
    """Return how many bytes left within the last 24 hours.

    Raises LedgerError if the ledger is damaged or cannot be read; one that is not there yet holds
    nothing.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return _sent_in_a_day(file.fileno(), os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise LedgerError(
            f"The ledger '{path}' cannot be counted ({error}).",
            outside="This node's ledger cannot be counted. Its operator must mend that.",
        ) from error


def entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a ledger, each after its place in the chain was checked.

    Raises LedgerError if the file cannot be read, or an entry is damaged, out of place or not
    chained to the one before; says which line. What comes before it was yielded.
    """
    previous, number = NOTHING, 0
    try:
        with path.open("rb") as file:
            for line in file:
                where = f"line {number + 1} of '{path}'"
                if not line.endswith(b"\n"):
                    raise LedgerError(
                        f"{where} was cut off while it was written: its answer was not sent. "
                        "The next entry says so."
                    )
                try:
                    entry = _read(line)
                except ValueError as error:
                    raise LedgerError(f"{where}: {error}. What stands before it holds.") from error
                if (entry.number, entry.previous) != (number, previous):
                    raise LedgerError(
                        f"{where} is not chained to the one before: an entry was changed, left "
                        "out or put in. What stands before it holds."
                    )
                yield entry
                previous, number = entry.hash, number + 1
    except OSError as error:
        raise LedgerError(
            f"The ledger '{path}' cannot be read: {error.strerror}. Give the path that `ledger` "
            "in the node's --node-config names."
        ) from error


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), sort_keys=True, separators=(",", ":")).encode()


def _read(line: bytes) -> Entry:
    """Return a line's entry; ValueError if it is none, byte for byte."""
    try:
        entry = Entry(**json.loads(line))
        kinds = {field.name: type(getattr(_EXAMPLE, field.name)) for field in fields(Entry)}
        same = all(type(getattr(entry, name)) is kind for name, kind in kinds.items())
    except (ValueError, TypeError, RecursionError):
        same = False
    if not same or _line(entry) != line.rstrip(b"\n"):
        raise ValueError("it is no entry of a ledger")
    return entry


_EXAMPLE = Entry("", "", "", "", "", "", "", 0, "")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sent_in_a_day(file: int, end: int) -> int:
    """Return the bytes of the answers within 24 hours that stand before ``end``."""
    since = (datetime.now(UTC) - _DAY).isoformat(timespec="milliseconds")
    total = 0
    for entry in map(_read, islice(_backwards(file, end), 1, None)):
        if entry.time < since:
            break
        total += entry.bytes
    return total


def _backwards(file: int, end: int) -> Iterator[bytes]:
    """Yield what stands behind the last whole line, then all lines, the last one first."""
    found = b""
    while end:
        size = min(_BLOCK, end)
        end -= size
        found, *lines = (os.pread(file, size, end) + found).split(b"\n")
        yield from reversed(lines)
    yield found
