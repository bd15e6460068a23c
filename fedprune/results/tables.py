"""The tables that a run ends with, for a terminal and for a log."""

import io
import statistics
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from fedprune.results.text import count, size_text


def render(results: Mapping[str, Any]) -> Group:
    """Return the summary of a run as rich tables.

    Parameters
    ----------
    results : Mapping
        The content of `results.json`.
    """
    tables = [_perplexities(results)]
    if "federated_evaluation" in results:
        tables.append(own_texts_table(results["federated_evaluation"]))
    if "zero_shot" in results:
        tables.append(zero_shot_table(results["zero_shot"]))
    return Group(*tables)


def plain_table(results: Mapping[str, Any]) -> str:
    """Return the same tables as plain text, 100 columns wide."""
    buffer = io.StringIO()
    Console(file=buffer, width=100, color_system=None, force_terminal=False).print(render(results))
    return buffer.getvalue().rstrip()


def _perplexities(results: Mapping[str, Any]) -> Table:
    sparsity, method = results["sparsity"], results["method"]
    table = Table(
        title=f"{method.get('plugin') or method['strategy']} · {method['pruner']} · "
        f"{sparsity['overall']:.2%} of {sparsity['weights']:,} weights pruned",
        title_justify="left",
        caption=_caption(results),
        caption_justify="left",
    )
    measured = results["perplexity"]
    rows = [
        (label, [_value(values, path) for values in measured.values()]) for label, path in _ROWS
    ]
    rows = [(label, values) for label, values in rows if any(v is not None for v in values)]
    if len(measured) <= _WIDEST:
        table.add_column("model")
        for dataset in measured:
            table.add_column(f"perplexity ({dataset})", justify="right")
        for label, values in rows:
            table.add_row(label, *map(_cell, values))
        return table
    # Many data sets would make it too wide: they become its lines.
    table.add_column("perplexity")
    for label, _ in rows:
        table.add_column(label, justify="right")
    for place, dataset in enumerate(measured):
        table.add_row(dataset, *(_cell(values[place]) for _, values in rows))
    table.add_section()
    table.add_row("geometric mean", *(_cell(_geometric_mean(values)) for _, values in rows))
    return table


_WIDEST = 3  # data sets side by side
_ROWS = (
    ("dense", ("dense",)),
    ("one client alone, best", ("local_only", "best")),
    ("one client alone, mean", ("local_only", "mean")),
    ("one client alone, worst", ("local_only", "worst")),
    ("federated", ("pruned",)),
    ("centralised (all samples in one place)", ("centralized",)),
)


def _value(values: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _geometric_mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.geometric_mean(known) if len(known) == len(values) else None


def _caption(results: Mapping[str, Any]) -> str:
    ledger, clients = results["ledger"], results["clients"]
    refused = sum(ledger["refused"].values())
    parts = [
        count(len(clients), "client"),
        f"{size_text(ledger['bytes_up'])} up, {size_text(ledger['bytes_down'])} down",
        *_brought(ledger.get("model_bytes", 0)),
        *_of_dense(ledger.get("of_dense", {})),
        *_agreement(results.get("agreement")),
        f"{results['seconds']['total']:.1f} s",
    ]
    if refused:
        parts.append(f"{count(refused, 'reply', 'replies')} refused")
    return " · ".join(parts)


def _agreement(found: Mapping[str, Any] | None) -> list[str]:
    """Return how far clients agree, nothing where they sent no masks."""
    return [f"clients agree on {found['pairwise']:.1%} of the weights"] if found else []


def _brought(size: int) -> list[str]:
    """Return what it took to bring nodes the model, nothing where all had it."""
    return [f"{size_text(size)} to bring nodes the model"] if size else []


def _of_dense(found: Mapping[str, Any]) -> list[str]:
    """Return what a client sends beside its weights."""
    if not found.get("share_of_dense"):
        return []
    share, bits = found["share_of_dense"], found["bits_per_weight"]
    return [f"a client sends {bits:.2f} bits a weight, {share:.1%} of dense"]


_MOST_CLIENTS = 8


def own_texts_table(found: Mapping[str, Any]) -> Table:
    """Return what clients measured on texts of their own, the worst first.

    Parameters
    ----------
    found : Mapping
        `federated_evaluation` of `results.json`.
    """
    table = Table(
        title="on each client's own held-out texts",
        title_justify="left",
        caption="\n".join(f"{name} is left out: {why}" for name, why in found["left_out"].items()),
        caption_justify="left",
    )
    table.add_column("client")
    for label in ("tokens", "dense", "federated", "ratio"):
        table.add_column(label, justify="right")
    clients = sorted(found["clients"].items(), key=lambda one: -(one[1]["ratio"] or float("inf")))
    for name, figures in clients[:_MOST_CLIENTS]:
        table.add_row(f"{name} (worst)" if name == found["worst"] else name, *_cells(figures))
    if len(clients) > _MOST_CLIENTS:
        table.add_row(f"and {len(clients) - _MOST_CLIENTS} more")
    if found["mean"] is not None:
        table.add_section()
        table.add_row("mean over tokens", *_cells(found["mean"]))
    return table


def zero_shot_table(found: Mapping[str, Any]) -> Table:
    """Return accuracies of tasks; of one that has none, its first metric.

    Parameters
    ----------
    found : Mapping
        `zero_shot` of `results.json`.
    """
    dense, pruned = found["dense"], found["pruned"]
    table = Table(
        title="zero-shot tasks",
        title_justify="left",
        caption=f"lm-evaluation-harness {dense['harness']}",
        caption_justify="left",
    )
    table.add_column("task")
    for label in ("metric", "dense", "federated"):
        table.add_column(label, justify="right")
    for name, metrics in dense["tasks"].items():
        metric = "acc" if "acc" in metrics else next(iter(metrics), "")
        scores = [one["tasks"][name].get(metric) for one in (dense, pruned)]
        table.add_row(name, metric, *(_number(score, 4) for score in scores))
    if dense["mean"] is not None:
        table.add_section()
        table.add_row("mean", "acc", _number(dense["mean"], 4), _number(pruned["mean"], 4))
    return table


def _cells(figures: Mapping[str, Any]) -> list[str]:
    values = [_number(figures[key], 2) for key in ("dense", "pruned", "ratio")]
    return [f"{figures['tokens']:,}", *values]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
