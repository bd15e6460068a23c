"""What the run cost: bytes and seconds of each exchange with the clients, and of each phase."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedprune.report.charts import Column, ColumnChart
from fedprune.results import text
from fedprune.results.ledger import APART
from fedprune.results.progress import LABELS

_MOST_COLUMNS = 60
# Phases without an exchange about blocks.
_BESIDE = (*APART, "handshake", "deliver")


@dataclass(frozen=True)
class Round:
    """One exchange with the clients."""

    number: int
    phase: str
    # asked, refused: clients, and those whose reply was not used
    asked: int
    refused: int
    bytes_up: int
    bytes_down: int
    seconds: float  # of the slowest client, from the request to the reply
    worked: float  # the longest that a client says it worked

    @property
    def name(self) -> str:
        """Number and purpose."""
        return f"{self.number} {LABELS.get(self.phase, self.phase)}"


def rounds(entries: Sequence[Mapping[str, Any]]) -> list[Round]:
    """Return the exchanges in their order; `ledger.entries` of `results.json` has their parts."""
    found: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault((entry["round"], entry["phase"]), []).append(entry)
    return [
        Round(
            number=number,
            phase=phase,
            asked=len({entry["client"] for entry in replies}),
            refused=sum(bool(entry["refused"]) for entry in replies),
            bytes_up=sum(entry["bytes_up"] for entry in replies),
            bytes_down=sum(entry["bytes_down"] for entry in replies),
            seconds=max(entry["round_trip_seconds"] for entry in replies),
            worked=max(entry["client_seconds"] for entry in replies),
        )
        for (number, phase), replies in found.items()
    ]


@dataclass(frozen=True)
class ByRound:
    """Bytes and seconds of the rounds of pruning; no charts of a single one."""

    # sent, took: bytes that a client sent, seconds until the slowest had answered
    sent: ColumnChart | None
    took: ColumnChart | None
    dense: float  # bytes that a client would have sent as dense weights, a round
    together: int  # rounds that share a column
    aside: str  # the exchanges other than about pruning that have columns, too; "" without any


def by_round(results: Mapping[str, Any], found: Sequence[Round]) -> ByRound | None:
    """Return what pruning cost round by round; None where nothing was pruned."""
    pruning = [one for one in found if one.phase == "prune"]
    shown = [one for one in found if one.phase not in _BESIDE]
    others = dict.fromkeys(one.phase for one in shown if one.phase != "prune")
    if not pruning:
        return None
    passes = len(results["strategy"].get("layer_sampling", [1]))
    share = passes / len(pruning)  # of the model, that a round of pruning is about on average
    groups = _drawn_together(shown)
    sent = [_column(group, _sent_each(group), text.size) for group in groups]
    took = [_column(group, max(one.seconds for one in group), text.seconds) for group in groups]
    bit = results["sparsity"]["weights"] / 8 * share
    several = len(shown) > 1  # the other tables tell the bytes and time of one
    return ByRound(
        sent=ColumnChart(_ends("Bytes sent", sent), sent, text.size, bit) if several else None,
        took=ColumnChart(_ends("Seconds", took), took, text.seconds) if several else None,
        dense=results["ledger"]["of_dense"]["dense_bytes"] * share,
        together=len(groups[0]),
        aside=", ".join(LABELS.get(phase, phase) for phase in others),
    )


def phases(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return what each phase of the run took, in its order."""
    return [(label, seconds[key]) for key, label in LABELS.items() if key in seconds]


def _drawn_together(found: Sequence[Round]) -> list[Sequence[Round]]:
    size = -(-len(found) // _MOST_COLUMNS)
    return [found[start : start + size] for start in range(0, len(found), size)]


def _sent_each(group: Sequence[Round]) -> float:
    return sum(one.bytes_up / max(1, one.asked) for one in group) / len(group)


def _column(group: Sequence[Round], value: float, write: Callable[[float], str]) -> Column:
    first, last = group[0], group[-1]
    label = str(first.number) if first is last else f"{first.number}–{last.number}"
    return Column(label, value, write(value), "" if first.phase == "prune" else "aside")


def _ends(what: str, columns: Sequence[Column]) -> str:
    least = min(columns, key=lambda column: column.value)
    most = max(columns, key=lambda column: column.value)
    return f"{what} by round, from {least.text} to {most.text}"
