"""Tables that a run ends with where more than perplexity was asked for."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

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
