"""The ledger by round: what each exchange with the clients cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WORDS = {
    "handshake": "handshake",
    "model": "the model to nodes",
    "survey": "survey",
    "deliver": "delivery",
    "prune": "pruning",
    "evaluate": "evaluation",
}


@dataclass(frozen=True)
class Round:
    """One exchange with the clients.

    Attributes
    ----------
    number : int
        The ledger's.
    phase : str
        What it was for, in words.
    asked, refused : int
        Clients, and those whose reply was not used.
    bytes_up, bytes_down : int
        Of all clients.
    seconds : float
        Of the slowest client, from the request to the reply.
    worked : float
        The longest that a client says it worked.
    """

    number: int
    phase: str
    asked: int
    refused: int
    bytes_up: int
    bytes_down: int
    seconds: float
    worked: float

    @property
    def name(self) -> str:
        """Number and purpose."""
        return f"{self.number} {self.phase}"


def rounds(entries: Sequence[Mapping[str, Any]]) -> list[Round]:
    """Return the exchanges in their order; `ledger.entries` of `results.json` has their parts."""
    found: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault((entry["round"], entry["phase"]), []).append(entry)
    return [
        Round(
            number=number,
            phase=_WORDS.get(phase, phase),
            asked=len({entry["client"] for entry in replies}),
            refused=sum(bool(entry["refused"]) for entry in replies),
            bytes_up=sum(entry["bytes_up"] for entry in replies),
            bytes_down=sum(entry["bytes_down"] for entry in replies),
            seconds=max(entry["round_trip_seconds"] for entry in replies),
            worked=max(entry["client_seconds"] for entry in replies),
        )
        for (number, phase), replies in found.items()
    ]
