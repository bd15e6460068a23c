"""The table that a run ends with, for a terminal and for a log."""

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from fedprune.reporting.progress import size_text


def render(results: Mapping[str, Any]) -> Table:
    """Return the summary of a run as a rich table.

    Parameters
    ----------
    results : Mapping
        The content of `results.json`.
    """
    sparsity, method = results["sparsity"], results["method"]
    table = Table(
        title=f"{method['strategy']} · {method['pruner']} · "
        f"{sparsity['overall']:.2%} of {sparsity['weights']:,} weights pruned",
        title_justify="left",
        caption=_caption(results),
        caption_justify="left",
    )
    table.add_column("model")
    for dataset in results["perplexity"]:
        table.add_column(f"perplexity ({dataset})", justify="right")
    for label, path in _ROWS:
        cells = [_cell(values, path) for values in results["perplexity"].values()]
        if any(cells):
            table.add_row(label, *(cell or "–" for cell in cells))
    return table


def plain_table(results: Mapping[str, Any]) -> str:
    """Return the same table as plain text, 100 columns wide."""
    buffer = io.StringIO()
    Console(file=buffer, width=100, color_system=None, force_terminal=False).print(render(results))
    return buffer.getvalue().rstrip()


_ROWS = (
    ("dense", ("dense",)),
    ("one client alone, best", ("local_only", "best")),
    ("one client alone, mean", ("local_only", "mean")),
    ("one client alone, worst", ("local_only", "worst")),
    ("federated", ("pruned",)),
    ("centralised (all samples in one place)", ("centralized",)),
)


def _cell(values: Mapping[str, Any], path: tuple[str, ...]) -> str:
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return f"{found:.2f}" if isinstance(found, int | float) else ""


def _caption(results: Mapping[str, Any]) -> str:
    ledger, clients = results["ledger"], results["clients"]
    refused = sum(ledger["refused"].values())
    parts = [
        f"{len(clients)} clients",
        f"{size_text(ledger['bytes_up'])} up, {size_text(ledger['bytes_down'])} down",
        *_agreement(results.get("agreement")),
        f"{results['seconds']['total']:.1f} s",
    ]
    if refused:
        parts.append(f"{refused} replies refused")
    return " · ".join(parts)


def _agreement(found: Mapping[str, Any] | None) -> list[str]:
    """Return how far clients agree, nothing where they sent no masks."""
    return [f"clients agree on {found['pairwise']:.1%} of the weights"] if found else []
