"""Many runs as one table: results -> rows -> pivots -> CSV and Markdown."""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedprune.results.ledger import APART
from fedprune.results.perplexity import (
    DENSE,
    FEDERATED,
    MODELS,
    fidelity_summaries,
    headline,
    perplexity_at,
    summaries,
)
from fedprune.results.text import markdown_table, markdown_text, size_text

Row = Mapping[str, str | float | None]

SEED = "seed"
SPARSITY = "sparsity"
UP, DOWN = "bytes_up_per_client", "bytes_down_per_client"
PRUNE_SECONDS = "prune_seconds"
EXCESS = "excess"
"""Log-perplexity over the dense model's, in nats a token: the mean over data sets if several."""


@dataclass(frozen=True)
class Axes:
    """Which swept keys become rows and which columns; what is in neither is averaged."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Pivot:
    """A table of texts with a title; its first ``labels`` columns say what a line is."""

    title: str
    labels: int
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def make_row(
    settings: Mapping[str, str],
    results: Mapping[str, Any],
    baseline_results: Mapping[str, Any] | None = None,
) -> Row:
    """Return the figures of one run: settings, seed, sparsity, what was measured, bytes, time.

    `settings`: swept key -> its value in this run. `baseline_results`: `results.json` of the run
    that measured its baselines, maybe itself.
    """
    row: dict[str, str | float | None] = dict(settings)
    row.setdefault(SPARSITY, f"{results['sparsity']['target']:g}")
    row.setdefault(SEED, str(results["seed"]))
    row["sparsity.overall"] = results["sparsity"]["overall"]
    baselines = _with_summaries((baseline_results or {}).get("perplexity", {}))
    for dataset, found in _with_summaries(results["perplexity"]).items():
        baseline = baselines.get(dataset, {})
        for path in MODELS:
            measured = perplexity_at(found, path)
            row[perplexity_key(dataset, path)] = (
                perplexity_at(baseline, path) if measured is None else measured
            )
    row[EXCESS] = _excess(results["perplexity"])
    close = results.get("fidelity") or {}
    for dataset, models in {**close, **fidelity_summaries(close)}.items():
        for path, figures in models.items():
            row |= {f"fidelity.{dataset}.{path}.{name}": one for name, one in figures.items()}
    clients = max(1, len(results["clients"]))
    # Without the clients' own evaluation, which only some of a sweep's runs are asked for, and
    # without the model, which only the first may have to bring.
    entries = [e for e in results["ledger"]["entries"] if e["phase"] not in APART]
    row[UP] = sum(entry["bytes_up"] for entry in entries) / clients
    row[DOWN] = sum(entry["bytes_down"] for entry in entries) / clients
    row[PRUNE_SECONDS] = results["seconds"].get("prune")
    row["seconds"] = results["seconds"]["total"]
    return row


def perplexity_key(dataset: str, path: str) -> str:
    """Return the column of a perplexity, named as in `results.json`."""
    return f"perplexity.{dataset}.{path}"


def datasets(rows: Iterable[Row]) -> list[str]:
    """Return the data sets that perplexity was measured on, then the summaries over several."""
    end = f".{FEDERATED}"
    found = (key for row in rows for key in row if key.startswith("perplexity."))
    names = [key.removeprefix("perplexity.").removesuffix(end) for key in found if key[-7:] == end]
    return list(dict.fromkeys(names))


def csv_text(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, a column for every key of any of them."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def all_pivots(rows: Sequence[Row], axes: Axes) -> list[Pivot]:
    """Return a table of perplexities for each data set, then excess, and bytes of a client."""
    pivots = [perplexity_pivot(rows, axes, dataset) for dataset in datasets(rows)]
    if any(row.get(EXCESS) is not None for row in rows):
        lines = lines_of(rows, axes, EXCESS, MODELS[FEDERATED], _excess_cell)
        title = "Log-perplexity over the dense model's"
        pivots.append(Pivot(title, 1 + len(axes.rows), _header(rows, axes), tuple(lines)))
    for figure, title in ((UP, "Sent by a client"), (DOWN, "Received by a client")):
        lines = lines_of(rows, axes, figure, "federated", _bytes_cell)
        pivots.append(Pivot(title, 1 + len(axes.rows), _header(rows, axes), tuple(lines)))
    return pivots


def perplexity_pivot(rows: Sequence[Row], axes: Axes, dataset: str) -> Pivot:
    """Return mean and spread of the perplexities on one data set, the baselines first."""
    lines: list[tuple[str, ...]] = []
    for path in (*(path for path in MODELS if path != FEDERATED), FEDERATED):
        figure, label = perplexity_key(dataset, path), MODELS[path]
        kept = axes if path == FEDERATED else Axes(relevant(rows, axes, figure), axes.columns)
        if any(row.get(figure) is not None for row in rows):
            found = lines_of(rows, kept, figure, label, mean_text)
            lines += (_widened(line, kept.rows, axes.rows) for line in found)
    title, labels = f"Perplexity ({dataset})", 1 + len(axes.rows)
    return Pivot(title, labels, _header(rows, axes), tuple(lines))


def relevant(rows: Sequence[Row], axes: Axes, figure: str) -> tuple[str, ...]:
    """Return the row keys on which a baseline depends.

    A baseline knows nothing of the server's settings: runs that differ only by those share it,
    and its table needs no line for each.
    """
    kept = list(axes.rows)
    for key in axes.rows:
        others = [name for name in (*kept, *axes.columns, SEED) if name != key]
        groups = grouped(rows, others)
        values = [{r[figure] for r in group if r.get(figure) is not None} for group in groups]
        if all(len(found) <= 1 for found in values):
            kept.remove(key)
    return tuple(kept)


def lines_of(
    rows: Sequence[Row],
    axes: Axes,
    figure: str,
    label: str,
    text: Callable[[Sequence[float]], str],
) -> list[tuple[str, ...]]:
    """Return a line for each combination of row keys, a cell for each of column keys.

    Each cell is ``text`` of the figure's values over all runs that belong there, one a seed.
    """
    lines = []
    columns = combinations(rows, axes.columns)
    for line in combinations(rows, axes.rows):
        here = [row for row in rows if values_of(row, axes.rows) == line]
        cells = []
        for column in columns:
            found = by_seed([r for r in here if values_of(r, axes.columns) == column], figure)
            cells.append(text(found) if found else "–")
        lines.append((label, *line, *cells))
    return lines


def by_seed(rows: Iterable[Row], figure: str) -> list[float]:
    """Return a figure's mean for each seed that has it."""
    seeds: dict[object, list[float]] = {}
    for row in rows:
        value = row.get(figure)
        if isinstance(value, int | float):
            seeds.setdefault(row.get(SEED), []).append(value)
    return [statistics.fmean(values) for values in seeds.values()]


def combinations(rows: Iterable[Row], keys: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the values that these keys have together in any row, in order of appearance."""
    return list(dict.fromkeys(values_of(row, keys) for row in rows))


def grouped(rows: Sequence[Row], keys: Sequence[str]) -> list[list[Row]]:
    """Return the rows in groups that agree on these keys."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(values_of(row, keys), []).append(row)
    return list(groups.values())


def mean_text(values: Sequence[float]) -> str:
    """Return "mean ± standard deviation", the latter only of values that differ."""
    mean = statistics.fmean(values)
    if len(values) < 2 or len(set(values)) == 1:
        return number_text(mean)
    return f"{number_text(mean)} ± {number_text(statistics.stdev(values))}"


def number_text(value: float) -> str:
    """Return a perplexity with two decimals, a collapsed one with three digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.2e}"


def markdown(pivot: Pivot) -> str:
    """Return a pivot as a section of Markdown."""
    return f"## {markdown_text(pivot.title)}\n\n{markdown_table(pivot.header, pivot.lines)}"


def _with_summaries(perplexity: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {**perplexity, **summaries(perplexity)}


def _header(rows: Sequence[Row], axes: Axes) -> tuple[str, ...]:
    columns = [
        ", ".join(f"{key} {value}" for key, value in zip(axes.columns, values, strict=True))
        for values in combinations(rows, axes.columns)
    ]
    return ("model", *axes.rows, *(name or "all" for name in columns))


def _widened(
    line: tuple[str, ...], kept: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[str, ...]:
    """Put empty cells into a line for the row keys that it does not have."""
    label, values, cells = line[0], line[1 : 1 + len(kept)], line[1 + len(kept) :]
    named = dict(zip(kept, values, strict=True))
    return (label, *(named.get(key, "") for key in wanted), *cells)


def values_of(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    """Return a row's values of some keys, "" for one that it has not."""
    return tuple(str(row.get(key, "")) for key in keys)


def _excess(perplexity: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return ln(pruned / dense) of the headline's figures, None where there are none."""
    found = headline(perplexity)[1]
    dense, pruned = (perplexity_at(found, path) for path in (DENSE, FEDERATED))
    if not dense or not pruned or not math.isfinite(pruned):
        return None
    return math.log(pruned / dense)


def _excess_cell(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _bytes_cell(values: Sequence[float]) -> str:
    return size_text(round(statistics.fmean(values)))
