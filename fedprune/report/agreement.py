"""How far clients' masks agree: over all weights, pair by pair, and by linear."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from fedprune.report.charts import Column, HeatMap, chart, column_chart
from fedprune.report.linears import by_block
from fedprune.report.markup import Html, join, tag
from fedprune.report.notes import by_chance
from fedprune.report.people import split_name
from fedprune.report.structure import grid_chart
from fedprune.report.tables import folded, table
from fedprune.results import text

_MOST_BARS = 25  # shares of votes that have a column each
_BINS = 20
_MATRIX = 24  # clients of the matrix


def agreement(results: Mapping[str, Any]) -> Html:
    """Return votes, the matrix of clients and agreement by linear."""
    found = results["agreement"]
    if not found:
        return tag("p", "Clients sent statistics, not masks: there are no votes to agree on.")
    chance = by_chance(results["sparsity"]["overall"])
    lead = (
        f"Two clients agree on {text.percent(found['pairwise'])} of the weights, all clients on "
        f"{text.percent(found['unanimous'])}. Masks drawn by lot would agree on "
        f"{text.percent(chance)}."
    )
    linears = grid_chart(
        "Agreement by block and kind of linear",
        "Share of weights on which two clients agree; the weaker the colour, the less they do.",
        "Agreement",
        by_block(found["linears"]),
    )
    matrix = _matrix(found.get("clients") or {})
    return join([tag("p", lead), _votes(found["votes_by_voters"]), matrix, linears])


def _votes(by_voters: Mapping[str, Sequence[int]]) -> Html:
    columns = vote_columns(by_voters)
    contested = 1 - sum(column.value for column in (columns[0], columns[-1]))
    label = (
        f"Votes to prune: {columns[0].text} of the weights have none, {columns[-1].text} all, "
        f"{text.percent(contested)} lie between"
    )
    what = "clients" if len(by_voters) == 1 and len(columns) <= _MOST_BARS else "shares of clients"
    return chart(
        "Votes to prune a weight",
        f"Columns are {what} that vote to prune; on {text.percent(contested)} they disagree.",
        column_chart(label, columns, lambda value: f"{value:.0%}"),
        folded("Data", _vote_table(by_voters, columns)),
    )


def _vote_table(by_voters: Mapping[str, Sequence[int]], columns: Sequence[Column]) -> Html:
    caption = "Weights by votes to prune"
    if any(len(counts) > _MOST_BARS for counts in by_voters.values()):
        return table(caption, ["Votes to prune", "Weights"], [[c.label, c.text] for c in columns])
    rows = [
        [f"{votes} of {len(counts) - 1}", f"{number:,}"]
        for counts in by_voters.values()
        for votes, number in enumerate(counts)
    ]
    return table(caption, ["Votes to prune", "Weights"], rows)


def vote_columns(by_voters: Mapping[str, Sequence[int]]) -> list[Column]:
    """Return a column for each share of votes, or for each twentieth where there are many.

    Parameters
    ----------
    by_voters : Mapping
        `agreement.votes_by_voters` of `results.json`; where blocks had different numbers of
        voters, their shares stand side by side.
    """
    shares: dict[Fraction, int] = {}
    for counts in by_voters.values():
        for votes, number in enumerate(counts):
            share = Fraction(votes, max(1, len(counts) - 1))
            shares[share] = shares.get(share, 0) + number
    total = sum(shares.values())
    if len(shares) <= _MOST_BARS:
        alone = len(by_voters) == 1
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


def _matrix(found: Mapping[str, Any]) -> Html:
    """Return who agrees with whom; of many clients those at both ends."""
    names: Sequence[str] = found.get("matrix_clients", [])
    if len(names) < 2:
        return Html()
    kept = _extremes([found["result"][name] for name in names], _MATRIX)
    shown = [names[place] for place in kept]
    numbers = [str(place + 1) for place in range(len(kept))]
    sites = [text.short(split_name(name)[0], 20) for name in shown]
    rows = [f"{number} {site}" for number, site in zip(numbers, sites, strict=True)]
    cells = [
        [None if row == column else found["matrix"][row][column] for column in kept] for row in kept
    ]
    aid = (
        f"Share of {found['weights']:,} sampled weights on which two masks are the same; "
        "columns have the numbers of the rows."
    )
    if len(found["result"]) > len(kept):
        aid += (
            f" Of {len(found['result']):,} clients those closest to and furthest from the result."
        )
    known = [value for row in cells for value in row if value is not None]
    if not known:
        return Html()
    if len(known) < len(kept) * (len(kept) - 1):
        aid += " Empty cells: no block in common."
    ends = f"from {text.percent(min(known))} to {text.percent(max(known))}"
    heat = HeatMap(f"Agreement between clients, {ends}", rows, numbers, cells, text.percent)
    with_result = [
        [name, text.percent(found["result"][name], 2), *(text.percent(v, 2) for v in row)]
        for name, row in zip(shown, cells, strict=True)
    ]
    header = ["Client", "With the result", *(f"With {number}" for number in numbers)]
    data = table("Agreement between clients", header, with_result)
    return chart("Agreement between clients", aid, heat.draw(), folded("Data", data))


def _extremes(shares: Sequence[float], most: int) -> list[int]:
    """Return the places of the smallest and the largest shares, at most so many, ascending."""
    ranked = sorted(range(len(shares)), key=lambda place: shares[place])
    if len(ranked) > most:
        ranked = ranked[: most // 2] + ranked[-(most // 2) :]
    return sorted(ranked)
