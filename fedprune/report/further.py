"""What was measured beside perplexity on common texts: clients' own texts, tasks, file sizes."""

from collections.abc import Mapping
from typing import Any

from fedprune.report.markup import Content, Html, join, tag
from fedprune.report.people import split_name
from fedprune.report.tables import folded, table, with_bar
from fedprune.results import text

_MOST = 12  # clients that are shown at once


def further(results: Mapping[str, Any]) -> Html:
    """Return the tables of what was asked for, nothing otherwise."""
    own, tasks = results.get("federated_evaluation"), results.get("zero_shot")
    return join([_own_texts(own) if own else None, _tasks(tasks) if tasks else None])


def sizes(results: Mapping[str, Any]) -> Html:
    """Return what the exported files take; nothing where results do not tell."""
    found = results.get("sizes")
    if not found:
        return Html()
    parts = [
        ("Safetensors, zeros written out", found["dense"]),
        ("Masks beside them", found["masks"]),
        ("Masks and surviving values alone, by count", found["bits_and_values"]),
    ]
    most = max(size for _, size in parts)
    rows = [[name, with_bar(text.size(size), size / most, "own")] for name, size in parts]
    return join([tag("h3", "What it takes on disk"), table("Sizes", ["Form", "Bytes"], rows)])


def _own_texts(found: Mapping[str, Any]) -> Html:
    """Return what pruning adds on each client's own held-out texts, the worst client first."""
    clients: Mapping[str, Mapping[str, Any]] = found["clients"]
    ranked = sorted(clients, key=lambda name: -(clients[name]["ratio"] or float("inf")))
    most = max([(one["ratio"] or 1.0) - 1 for one in clients.values()] + [0.0])
    rows = [_own_row(name, clients[name], most) for name in ranked]
    if found["mean"]:
        rows.insert(0, _own_row("All texts as one", found["mean"], most))
    header = ["Client", "Tokens", "Dense", "Federated", "Above dense"]
    parts: list[Content] = [
        tag("h3", "On the clients' own texts"),
        tag("p", "Held-out texts that never left their sites; the worst first.", class_="aid"),
        table("Perplexity on the clients' own texts", header, rows[: _MOST + 1]),
    ]
    if len(rows) > _MOST + 1:
        every = table("Perplexity on all clients' own texts", header, rows)
        parts.append(folded(f"All {len(ranked):,} clients", every))
    parts += [
        tag("p", f"{name} is left out: {why}", class_="aid")
        for name, why in list(found["left_out"].items())[:_MOST]
    ]
    return join(parts)


def _own_row(name: str, figures: Mapping[str, Any], most: float) -> list[Content]:
    ratio = figures["ratio"]
    site, partition = split_name(name)
    added: Content = text.NONE
    if ratio is not None:
        added = with_bar(text.rise(ratio), (ratio - 1) / most if most else 0.0, "own")
    return [
        join([site, tag("small", partition) if partition else None]),
        f"{figures['tokens']:,}",
        text.figure(figures["dense"]),
        text.figure(figures["pruned"]),
        added,
    ]


def _tasks(found: Mapping[str, Any]) -> Html:
    """Return the accuracies of tasks before and after; of one that has none its first metric."""
    dense, pruned = found["dense"], found["pruned"]
    rows: list[list[Content]] = []
    for name, metrics in dense["tasks"].items():
        metric = "acc" if "acc" in metrics else next(iter(metrics), "")
        scores = [one["tasks"].get(name, {}).get(metric) for one in (dense, pruned)]
        rows.append([name, metric, *(_score(score) for score in scores)])
    rows.append(["Mean accuracy", "", _score(dense["mean"]), _score(pruned["mean"])])
    aid = f"Higher is better. Measured by lm-evaluation-harness {dense['harness']}."
    header = ["Task", "Metric", "Dense", "Federated"]
    return join(
        [
            tag("h3", "Zero-shot tasks"),
            tag("p", aid, class_="aid"),
            table("Zero-shot tasks", header, rows, len(rows) - 1),
        ]
    )


def _score(value: float | None) -> str:
    return text.NONE if value is None else f"{value:.4f}"
