"""How far clients' masks agree: votes, and who agrees with whom."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fedprune.report.charts import Column, ColumnChart, HeatMap
from fedprune.report.clients import split_name
from fedprune.results import text

_MOST_BARS = 25  # shares of votes that have a column each
_BINS = 20
_MATRIX = 24  # clients of the matrix


@dataclass(frozen=True)
class Votes:
    """The chart of votes: the share of weights on which clients disagree, and its data."""

    chart: ColumnChart
    what: str
    contested: float
    rows: list[tuple[str, str]]


def votes(by_total: Mapping[str, Sequence[int]]) -> Votes:
    """Return the chart of votes to prune.

    `by_total`: `agreement.votes_by_voters` of `results.json`: votes that could be cast -> weights
    by votes.
    """
    columns = vote_columns(by_total)
    contested = 1 - sum(column.value for column in (columns[0], columns[-1]))
    label = (
        f"Votes to prune: {columns[0].text} of the weights have none, {columns[-1].text} all, "
        f"{text.percent(contested)} lie between"
    )
    rows = [(column.label, column.text) for column in columns]
    if all(len(counts) <= _MOST_BARS for counts in by_total.values()):
        rows = [
            (f"{number} of {len(counts) - 1}", f"{weights:,}")
            for counts in by_total.values()
            for number, weights in enumerate(counts)
        ]
    alone = len(by_total) == 1 and len(columns) <= _MOST_BARS
    chart = ColumnChart(label, columns, lambda value: f"{value:.0%}")
    return Votes(chart, "clients" if alone else "shares of clients", contested, rows)


def vote_columns(by_total: Mapping[str, Sequence[int]]) -> list[Column]:
    """Return a column for each share of votes, or for each twentieth where there are many.

    `by_total`: as for :func:`votes`; where blocks had different totals, their shares stand side by
    side.
    """
    shares: dict[Fraction, int] = {}
    for counts in by_total.values():
        for votes, number in enumerate(counts):
            share = Fraction(votes, max(1, len(counts) - 1))
            shares[share] = shares.get(share, 0) + number
    total = sum(shares.values())
    if len(shares) <= _MOST_BARS:
        alone = len(by_total) == 1
        found = [
            (str(place) if alone else f"{float(share):.0%}", shares[share])
            for place, share in enumerate(sorted(shares))
        ]
    else:
        found = _drawn_together(shares)
    ends = (0, len(found) - 1)
    return [
        Column(label, number / total, text.percent(number / total), _kind(place in ends))
        for place, (label, number) in enumerate(found)
    ]


def _kind(agreed: bool) -> str:
    return "" if agreed else "contested"


def _drawn_together(shares: Mapping[Fraction, int]) -> list[tuple[str, int]]:
    """Return label and weights: no votes, each twentieth between, all votes."""
    between = [f"≤{100 * step // _BINS}%" for step in range(1, _BINS)]
    labels = ["0%", *between, "<100%", "100%"]
    counts = [0] * len(labels)
    for share, number in shares.items():
        counts[_BINS + 1 if share == 1 else math.ceil(share * _BINS)] += number
    return list(zip(labels, counts, strict=True))


@dataclass(frozen=True)
class Matrix:
    """Who agrees with whom: the map, how many clients there are, and the data."""

    heat: HeatMap  # client by client; columns have the numbers of the rows
    clients: int  # all; of many the map has those at both ends only
    complete: bool  # whether every two clients have a block in common
    # client, agreement with the result, and with each of the clients
    rows: list[tuple[str, float, Sequence[float | None]]]

    @property
    def header(self) -> list[str]:
        """Names of the data's columns."""
        return ["Client", "With the result", *(f"With {number}" for number in self.heat.columns)]


def matrix(found: Mapping[str, Any]) -> Matrix | None:
    """Return who agrees with whom, of many clients those at both ends; None if nobody knows."""
    names: Sequence[str] = found.get("matrix_clients", [])
    kept = _extremes([found["result"][name] for name in names], _MATRIX) if names else []
    cells = [
        [None if row == column else found["matrix"][row][column] for column in kept] for row in kept
    ]
    known = [value for row in cells for value in row if value is not None]
    if not known:
        return None
    shown = [names[place] for place in kept]
    numbers = [str(place + 1) for place in range(len(kept))]
    sites = [text.short(split_name(name)[0], 20) for name in shown]
    rows = [f"{number} {site}" for number, site in zip(numbers, sites, strict=True)]
    label = f"Agreement between clients, from {text.percent(min(known))} to "
    label += text.percent(max(known))
    return Matrix(
        heat=HeatMap(label, rows, numbers, cells, text.percent),
        clients=len(found["result"]),
        complete=len(known) == len(kept) * (len(kept) - 1),
        rows=[(name, found["result"][name], row) for name, row in zip(shown, cells, strict=True)],
    )


def _extremes(shares: Sequence[float], most: int) -> list[int]:
    """Return the places of the smallest and the largest shares, at most so many, ascending."""
    ranked = sorted(range(len(shares)), key=lambda place: shares[place])
    if len(ranked) > most:
        ranked = ranked[: most // 2] + ranked[-(most // 2) :]
    return sorted(ranked)
