"""What the gateway refused: read from nginx's lines, told once, counted, and kept in a file.

Memory and the log stay small whatever an attacker sends: addresses are counted up to a number,
those who come most often stay, and only so many lines are written a minute.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

VERSION = 1
KINDS = ("control", "runtime", "other", "plain", "tls", "auth", "too-large", "rate", "slow")
"""What can be refused: the APIs that are not for the outside, and ways of not being a node."""

MAX_LISTED = 100
"""Addresses in the file, those with the most refusals."""
MAX_REMEMBERED = 4096
"""Addresses, and pairs of address and kind, that are held in memory."""
MAX_LINES_PER_MINUTE = 20
"""Lines about newcomers; whoever comes beyond them is only counted."""

_HANDSHAKE = re.compile(
    r"SSL_do_handshake\(\) failed(?: \(SSL: error:[0-9A-F]+:[^:)]*:[^:)]*:(?P<why>[^:)]*))?"
    r".* while SSL handshaking, client: (?P<address>[0-9a-fA-F.:]+)"
)
_SILENT = re.compile(
    r"client timed out .* while (?:SSL handshaking|waiting for request), "
    r"client: (?P<address>[0-9a-fA-F.:]+)"
)
_TROUBLE = re.compile(
    r"\[(?P<level>warn|error|crit|alert|emerg)\] [0-9#]+: (?:\*[0-9]+ )?(?P<text>.*)"
)


@dataclass(frozen=True)
class Refusal:
    """One refusal: whose, of which kind, and what is known of it that is no content."""

    address: str
    kind: str
    detail: str


def read_refusal(line: str) -> Refusal | None:
    """Return the refusal that a line of nginx tells of, if it does.

    Parameters
    ----------
    line : str
        A JSON object of nginx's access log or a line of its error log.
    """
    if line.startswith("{"):
        return _of_request(line)
    if found := _HANDSHAKE.search(line):
        return Refusal(found["address"], "tls", (found["why"] or "no handshake").strip())
    if found := _SILENT.search(line):
        return Refusal(found["address"], "slow", "sent nothing")
    return None


def read_trouble(line: str) -> str | None:
    """Return what an error log's line says that an operator should know, without any content.

    nginx puts the address, the request and the Host header behind the message, and begins with
    "client" where somebody else is at fault.
    """
    found = _TROUBLE.search(line)
    if found is None or found["text"].startswith("client "):
        return None
    return f"nginx, {found['level']}: {found['text'].partition(', client: ')[0]}"


def _of_request(line: str) -> Refusal | None:
    try:
        entry = json.loads(line)
        status, address, limits = entry["status"], entry["address"], entry["limits"]
        method, api, https = entry["method"], entry["api"], entry["https"]
    except (ValueError, KeyError, TypeError):
        return None
    detail = f"{method}, answered {status}"
    if https != "on":
        return Refusal(address, "plain", "no TLS")
    if status == "408":
        return Refusal(address, "slow", "took too long")
    if status == "413":
        return Refusal(address, "too-large", detail)
    if status == "503":
        return Refusal(address, "rate", detail) if "REJECTED" in limits else None
    if status == "412" and api not in ("activate", "register"):
        return None
    if status in ("401", "412") or api == "register":
        return Refusal(address, "auth", detail)
    return Refusal(address, api if api in ("control", "runtime") else "other", detail)


@dataclass
class Tally:
    """Counters of refusals.

    Attributes
    ----------
    since : datetime
        When counting began; earlier runs of the gateway are included.
    refused : dict of str to int
        Refusals by kind.
    addresses : Counter of str
        Refusals by address, of those that are remembered.
    """

    since: datetime
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    addresses: Counter[str] = field(default_factory=Counter)
    _told: dict[tuple[str, str], None] = field(default_factory=dict)
    _minute: int = 0
    _lines: int = 0

    @property
    def total(self) -> int:
        """How many were refused."""
        return sum(self.refused.values())

    def add(self, refusal: Refusal, now: datetime) -> bool:
        """Count one and return whether it is worth a line: the first of its address and kind."""
        self.refused[refusal.kind] += 1
        self.addresses[refusal.address] += 1
        if len(self.addresses) > MAX_REMEMBERED:
            self.addresses = Counter(dict(self.addresses.most_common(MAX_REMEMBERED // 2)))
        pair = (refusal.address, refusal.kind)
        if pair in self._told:
            return False
        self._told[pair] = None
        if len(self._told) > MAX_REMEMBERED:
            del self._told[next(iter(self._told))]
        minute = int(now.timestamp() // 60)
        if minute != self._minute:
            self._minute, self._lines = minute, 0
        self._lines += 1
        return self._lines <= MAX_LINES_PER_MINUTE

    def summary(self) -> str:
        """Return one line with all that is counted."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.refused.items() if count)
        return f"refused since {_iso(self.since)}: {kinds or 'nothing'}"

    def save(self, path: Path, now: datetime) -> None:
        """Write the counters, whole or not at all.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        content = {
            "version": VERSION,
            "since": _iso(self.since),
            "updated": _iso(now),
            "refused": self.refused,
            "addresses": dict(self.addresses.most_common(MAX_LISTED)),
        }
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(part, path)


def load_tally(path: Path, now: datetime) -> Tally:
    """Return what an earlier gateway counted, or an empty tally if nothing readable is there."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(path.read_text())
        since = datetime.fromisoformat(content["since"])
        if content["version"] == VERSION and since.tzinfo is not None:
            tally = Tally(since)
            tally.refused |= _counts(content["refused"], KINDS)
            tally.addresses.update(_counts(content["addresses"]))
            return tally
    return Tally(now)


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def _counts(content: Mapping[str, object], keys: tuple[str, ...] = ()) -> dict[str, int]:
    return {
        key: value
        for key, value in content.items()
        if type(value) is int and value >= 0 and (key in keys or not keys)
    }


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
