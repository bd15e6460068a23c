"""What each client gave, and what it would have had alone; the worst first."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedprune.report.markup import Content, Html, join, tag
from fedprune.report.people import Person, measured, people, split_name
from fedprune.report.tables import folded, table, with_dot
from fedprune.results import text

_MOST = 24  # clients that are shown at once
_WORST, _BEST = 12, 4


def clients(results: Mapping[str, Any]) -> Html:
    """Return a line for each client; of many those at both ends, and all on demand."""
    found = people(results)
    if not found:
        return tag("p", "No client took part.")
    name, values = measured(results)
    ranked = sorted(found, key=_rank)
    aid = [f"Ordered from the client that does worst alone ({name})"]
    if any(person.perplexity is not None for person in found):
        aid.append("the line through the dots is the federated model, further left is better")
    else:
        aid = ["What clients reach alone was not measured"]
        if any(person.agreement is not None for person in found):
            aid.append("ordered by agreement with the result")
    few = ranked if len(ranked) <= _MOST else ranked[:_WORST] + ranked[-_BEST:]
    if len(few) < len(ranked):
        aid.append(f"the first {_WORST} and the last {_BEST} of {len(ranked):,}")
    parts: list[Content] = [
        tag("p", "; ".join(aid) + ".", class_="aid"),
        _table("Clients", few, values.get("pruned"), dots=True),
    ]
    if len(few) < len(ranked):
        every = _table("All clients", found, None, dots=False)
        parts.append(folded(f"All {len(found):,} clients", every))
    return join(parts)


def _rank(person: Person) -> tuple[float, float]:
    worst = person.perplexity if person.perplexity is not None else float("inf")
    return -worst, person.agreement if person.agreement is not None else 1.0


def _name(person: Person) -> Html:
    site, partition = split_name(person.name)
    left = "" if person.left is None else f"left out in round {person.left}"
    small = ", ".join(filter(None, (partition, left)))
    return join([site, tag("small", small) if small else None])


def _table(caption: str, shown: Sequence[Person], pruned: float | None, *, dots: bool) -> Html:
    known = [person.perplexity for person in shown if person.perplexity is not None]
    header = ["Client", "Samples", "Tokens"]
    columns = {
        "Blocks pruned": any(person.blocks is not None for person in shown),
        "Agrees with result": any(person.agreement is not None for person in shown),
        "Perplexity alone": bool(known),
    }
    header += [name for name, there in columns.items() if there] + ["Sent", "Worked"]
    ends = [*known, *([pruned] if pruned is not None else [])]
    low, high = min(ends, default=0.0), max(ends, default=1.0)

    def at(value: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5

    def perplexity(person: Person) -> Content:
        if person.perplexity is None or not dots:
            return text.figure(person.perplexity)
        goal = at(pruned) if pruned is not None else None
        return with_dot(text.figure(person.perplexity), at(person.perplexity), goal)

    rows: list[list[Content]] = []
    for person in shown:
        optional: dict[str, Content] = {
            "Blocks pruned": text.NONE if person.blocks is None else f"{person.blocks:,}",
            "Agrees with result": text.percent(person.agreement, 2),
            "Perplexity alone": perplexity(person),
        }
        rows.append(
            [
                _name(person),
                f"{person.samples:,}",
                f"{person.tokens:,}",
                *(cell for name, cell in optional.items() if columns[name]),
                text.size(person.bytes_up),
                text.seconds(person.seconds),
            ]
        )
    return table(caption, header, rows)
