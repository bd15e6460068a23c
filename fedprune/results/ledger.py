"""Bytes, seconds and memory per client and round, and the kinds of refusals among them.

Bytes are always of the real serialised payload.
"""

import re
from dataclasses import asdict, dataclass, field, replace

from fedprune.errors import listing

APART = ("model", "evaluate")
"""Phases that are not part of what a method costs: bringing nodes the model, and measuring."""


@dataclass(frozen=True)
class Entry:
    """One request and its reply."""

    round: int  # 0 is the handshake; from 1 on, one exchange with all clients each
    phase: str  # "handshake", "model", "survey", "deliver", "prune", "reconstruct" or "evaluate"
    client: str  # the node's name as in its handshake
    # bytes_down, bytes_up: serialised size of the request and of the reply, headers included
    bytes_down: int
    bytes_up: int
    round_trip_seconds: float  # from handing the request to Flower until the reply was in hand
    client_seconds: float = 0.0  # what the node says it worked
    # peak_rss_bytes, peak_device_bytes: peak memory the node says it used
    peak_rss_bytes: int = 0
    peak_device_bytes: int = 0
    refused: str = ""  # why the reply was not used; "" if it was

    def worked(self, seconds: float, rss_bytes: int, device_bytes: int) -> "Entry":
        """Return the entry with what the node says of its work: seconds and peak memory."""
        return replace(
            self,
            client_seconds=seconds,
            peak_rss_bytes=rss_bytes,
            peak_device_bytes=device_bytes,
        )


@dataclass
class Ledger:
    """The entries of one run in the order they were made."""

    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Append one entry."""
        self.entries.append(entry)

    def add_strays(self, round: int, phase: str, count: int) -> None:
        """Note how many messages of an exchange answered no request of the run."""
        refused = f"{count} messages that answer no request of this run"
        self.add(Entry(round, phase, "nobody who was asked", 0, 0, 0.0, refused=refused))

    @property
    def bytes_down(self) -> int:
        """Bytes sent to all clients, but for those that brought them the model."""
        return sum(entry.bytes_down for entry in self.entries if entry.phase != "model")

    @property
    def bytes_up(self) -> int:
        """Bytes received from all clients, but for answers to segments of the model."""
        return sum(entry.bytes_up for entry in self.entries if entry.phase != "model")

    @property
    def model_bytes(self) -> int:
        """Bytes sent to bring nodes the model."""
        return sum(entry.bytes_down for entry in self.entries if entry.phase == "model")

    def refused(self) -> dict[str, int]:
        """Return how many replies of each client were refused."""
        counts: dict[str, int] = {}
        for entry in self.entries:
            if entry.refused:
                counts[entry.client] = counts.get(entry.client, 0) + 1
        return counts

    def reason(self, client: str) -> str:
        """Return why the latest refused reply of a client was refused; "" if none was."""
        return next(
            (e.refused for e in reversed(self.entries) if e.client == client and e.refused), ""
        )

    def reasons(self) -> str:
        """Return the latest distinct reasons for refusals, for an error message."""
        clients: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.refused:
                clients.setdefault(entry.refused, []).append(entry.client)
        latest = list(clients.items())[-_SHOWN:]
        return " | ".join(f"{listing(names, _SHOWN)}: {reason}" for reason, names in latest)

    def to_dict(self) -> dict[str, object]:
        """Return the ledger as plain JSON values, totals first."""
        return {
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "model_bytes": self.model_bytes,
            "refused": self.refused(),
            "peak_client_rss_bytes": max((e.peak_rss_bytes for e in self.entries), default=0),
            "peak_client_device_bytes": max((e.peak_device_bytes for e in self.entries), default=0),
            "client_seconds": sum(e.client_seconds for e in self.entries),
            "entries": [asdict(entry) for entry in self.entries],
        }


_SHOWN = 3  # reasons in an error, and clients of each


KINDS = ("lost", "timeout", "crashed", "failed", "handshake", "invalid", "stray")
GONE = frozenset({"lost", "timeout", "crashed"})
"""Kinds of a client that is not there, rather than one that is wrong."""

_FLOWER_ERROR = re.compile(r"\(Flower error (\d+)\)")
_STRAYS = re.compile(r"(\d+) messages that answer no request")
_BY_CODE = {"3": "lost", "4": "lost", "5": "lost", "8": "crashed"}
_STARTS = {
    "no reply within": "timeout",
    "it left before": "lost",
    "it has not come back": "lost",
    "it has started anew": "lost",
    "it failed:": "failed",
}


def refusal_kind(entry: Entry) -> str:
    """Return why a reply was not used, one of :data:`KINDS`.

    "lost": its node is not connected; "timeout": no answer in `strategy.timeout`; "crashed": the
    process that worked died; "failed": the node says that it cannot; "handshake": it may not take
    part; "invalid": what it sent is wrong; "stray": messages that nobody asked for.
    """
    if strays(entry):
        return "stray"
    codes = _FLOWER_ERROR.findall(entry.refused)  # the last is ours, others a node may have said
    if codes and codes[-1] in _BY_CODE:
        return _BY_CODE[codes[-1]]
    for start, kind in _STARTS.items():
        if entry.refused.startswith(start):
            return kind
    return "handshake" if entry.phase in ("handshake", "model") else "invalid"


def strays(entry: Entry) -> int:
    """Return how many messages that answer no request an entry tells of; 0 for another entry."""
    found = _STRAYS.match(entry.refused)
    return int(found[1]) if found else 0
