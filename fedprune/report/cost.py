"""What the run cost: bytes beside dense weights and one bit a weight, and where time went."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedprune.report.charts import Column, chart, column_chart
from fedprune.report.markup import Html, join, tag
from fedprune.report.rounds import Round, rounds
from fedprune.report.tables import folded, table, with_bar
from fedprune.results import text

_MOST_COLUMNS = 60
_PHASES = {
    "load": "Loading the model",
    "handshake": "Handshake",
    "survey": "Survey",
    "prune": "Pruning and aggregation",
    "local": "Clients' own models",
    "federated": "Clients' own texts",
    "evaluate": "Evaluation and baselines",
    "export": "Writing the model",
    "zero_shot": "Zero-shot tasks and sizes",
}


def cost(results: Mapping[str, Any]) -> Html:
    """Return bytes in all, bytes and seconds by round, and where time went."""
    found = rounds(results["ledger"]["entries"])
    return join([_sent(results), *_by_round(results, found), _time(results["seconds"])])


def _sent(results: Mapping[str, Any]) -> Html:
    ledger, weights = results["ledger"], results["sparsity"]["weights"]
    of_dense = ledger["of_dense"]
    up, dense, bit = of_dense["up_per_client"], of_dense["dense_bytes"], weights / 8
    most = max(up, dense, bit)
    lines = [("This run", up, "own"), ("One bit a weight", bit, "other")]
    if dense:
        lines.append(("Dense weights", dense, "other"))
    rows = [
        [name, with_bar(text.size(size), size / most, kind), f"{8 * size / weights:.2f}"]
        for name, size, kind in lines
    ]
    total = (
        f"All clients together: {text.size(ledger['bytes_up'])} up, "
        f"{text.size(ledger['bytes_down'])} down, headers included."
    )
    if brought := ledger.get("model_bytes"):
        total += f" Besides, nodes that lacked the model got it in {text.size(brought)}."
    title = tag("h3", "What a client sends")
    header = ["What", "Bytes", "Bits a weight"]
    return join([title, tag("p", total, class_="aid"), table("Bytes", header, rows, 0)])


def _by_round(results: Mapping[str, Any], found: Sequence[Round]) -> list[Html]:
    pruning = [one for one in found if one.phase == "pruning"]
    shown = [one for one in found if one.phase in ("pruning", "survey")]
    if not pruning:
        return []
    passes = len(results["strategy"].get("layer_sampling", [1]))
    share = passes / len(pruning)  # of the model, that a round of pruning is about on average
    bit = results["sparsity"]["weights"] / 8 * share
    dense = text.size(results["ledger"]["of_dense"]["dense_bytes"] * share)
    groups = _drawn_together(shown)
    aid = f"Mean over clients; the line is 1 bit a weight, dense weights would be {dense} a round."
    if len(shown) > len(pruning):
        aid += " Grey is the survey."
    if len(groups) < len(shown):
        aid += f" {len(groups[0])} rounds share a column."
    sent = [_column(group, _sent_each(group), text.size) for group in groups]
    took = [_column(group, _slowest(group), text.seconds) for group in groups]
    header = ["Round", "Clients", "Refused", "Up", "Down", "Slowest reply", "Longest work"]
    rows = [
        [
            one.name,
            f"{one.asked:,}",
            f"{one.refused:,}",
            text.size(one.bytes_up),
            text.size(one.bytes_down),
            text.seconds(one.seconds),
            text.seconds(one.worked) if one.worked else text.NONE,
        ]
        for one in found
    ]
    data = folded("Data of all rounds", table("Rounds", header, rows))
    if len(shown) == 1:  # whose bytes and time the other tables tell
        return [data]
    return [
        chart(
            "Sent by a client, by round",
            aid,
            column_chart(_ends("Bytes sent", sent), sent, text.size, bit),
        ),
        chart(
            "Time, by round",
            "From the request to the slowest client's reply.",
            column_chart(_ends("Seconds", took), took, text.seconds),
            data,
        ),
    ]


def _drawn_together(found: Sequence[Round]) -> list[Sequence[Round]]:
    size = -(-len(found) // _MOST_COLUMNS)
    return [found[start : start + size] for start in range(0, len(found), size)]


def _sent_each(group: Sequence[Round]) -> float:
    return sum(one.bytes_up / max(1, one.asked) for one in group) / len(group)


def _slowest(group: Sequence[Round]) -> float:
    return max(one.seconds for one in group)


def _column(group: Sequence[Round], value: float, write: Callable[[float], str]) -> Column:
    first, last = group[0], group[-1]
    label = str(first.number) if first is last else f"{first.number}–{last.number}"
    return Column(label, value, write(value), "" if first.phase == "pruning" else "aside")


def _ends(what: str, columns: Sequence[Column]) -> str:
    least = min(columns, key=lambda column: column.value)
    most = max(columns, key=lambda column: column.value)
    return f"{what} by round, from {least.text} to {most.text}"


def _time(seconds: Mapping[str, float]) -> Html:
    parts = [(name, seconds[key]) for key, name in _PHASES.items() if key in seconds]
    most = max((value for _, value in parts), default=0.0) or 1.0
    rows = [[name, with_bar(text.seconds(value), value / most, "own")] for name, value in parts]
    aid = f"{text.seconds(seconds['total'])} in all, as the server saw it."
    heading = tag("h3", "Where time went")
    return join([heading, tag("p", aid, class_="aid"), table("Time", ["Phase", "Took"], rows)])
