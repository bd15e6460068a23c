"""The tables that a run ends with, for a terminal and for a log.

Whatever comes from outside, a site's name or a data set's, is put in as text: rich reads a string
in a table as markup.
"""

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from fedprune.results.perplexity import (
    FEDERATED,
    GEOMETRIC_MEAN,
    MODELS,
    fidelity_table,
    perplexity_at,
    served_worst,
    task_scores,
)
from fedprune.results.sweep import Pivot
from fedprune.results.text import count, printable, size_change, size_text

_WIDEST = 3  # data sets side by side
_MOST_CLIENTS = 8


def render(results: Mapping[str, Any]) -> Group:
    """Return the summary of a run as rich tables.

    `results`: the content of `results.json`.
    """
    measured = any(found["dense"] is not None for found in results["perplexity"].values())
    only_statistics = "statistics" in results and not measured and not results["sparsity"]["zeros"]
    tables = [_collected(results) if only_statistics else _perplexities(results)]
    if results.get("fidelity"):
        tables.append(_fidelity(results["fidelity"]))
    if "federated_evaluation" in results:
        tables.append(_own_texts(results["federated_evaluation"]))
    if "zero_shot" in results:
        tables.append(_zero_shot(results["zero_shot"]))
    return Group(*tables)


def plain_table(results: Mapping[str, Any]) -> str:
    """Return the same tables as plain text, 100 columns wide."""
    buffer = io.StringIO()
    Console(file=buffer, width=100, color_system=None, force_terminal=False).print(render(results))
    return buffer.getvalue().rstrip()


def text_table(  # noqa: PLR0913 - the parts of a table
    title: str,
    header: Sequence[str],
    rows: Iterable[Iterable[str]],
    *,
    last: Iterable[Iterable[str]] = (),
    caption: str = "",
    labels: int = 1,
) -> Table:
    """Return a rich table of texts, none of which is markup.

    `last`: rows below a line. `labels`: how many of the first columns are words; the others are
    figures, at the right.
    """
    table = Table(title=_text(title), title_justify="left", caption_justify="left")
    table.caption = _text(caption) if caption else None
    table.min_width = cell_len(title)  # rich breaks it at the table's width
    for place, name in enumerate(header):
        justify: JustifyMethod = "left" if place < labels else "right"
        table.add_column(_text(name), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    for number, row in enumerate(last):
        if not number:
            table.add_section()
        table.add_row(*map(_text, row))
    return table


def pivot_table(pivot: Pivot) -> Table:
    """Return a table of a sweep."""
    return text_table(pivot.title, pivot.header, pivot.lines, labels=pivot.labels)


def _text(text: str) -> Text:
    return Text(printable(text))


def _collected(results: Mapping[str, Any]) -> Table:
    """Return what a collection gathered, of which no model was made yet."""
    found = results["statistics"]
    title = f"{results['method']['strategy']} · {', '.join(found['kinds'])}"
    header = ["participants", "tokens", "bytes kept"]
    row = [f"{found['participants']:,}", f"{found['tokens']:,}", size_text(found["bytes"])]
    return text_table(title, header, [row], caption=_caption(results), labels=0)


def _perplexities(results: Mapping[str, Any]) -> Table:
    sparsity, method = results["sparsity"], results["method"]
    smaller = results.get("smaller")
    title = (
        f"{method['strategy']} · {smaller['summary']}"
        if smaller
        else f"{method['strategy']} · {method['pruner']} · "
        f"{sparsity['overall']:.2%} of {sparsity['weights']:,} weights pruned"
    )
    measured = results["perplexity"]
    rows = [
        (label, [perplexity_at(values, path) for values in measured.values()])
        for path, label in MODELS.items()
    ]
    rows = [(label, values) for label, values in rows if any(v is not None for v in values)]
    if len(measured) <= _WIDEST:
        header = ["model", *(f"perplexity ({dataset})" for dataset in measured)]
        lines = [[label, *map(_number, values)] for label, values in rows]
        return text_table(title, header, lines, caption=_caption(results))
    # Many data sets would make it too wide: they become its lines.
    header = ["perplexity", *(label for label, _ in rows)]
    columns = zip(*(values for _, values in rows), strict=True)
    lines = [[name, *map(_number, own)] for name, own in zip(measured, columns, strict=True)]
    mean = [GEOMETRIC_MEAN, *(_number(_geometric_mean(values)) for _, values in rows)]
    return text_table(title, header, lines, last=[mean], caption=_caption(results))


def _fidelity(found: Mapping[str, Any]) -> Table:
    """Return how close each model's predictions stay to the dense model's."""
    header, rows = fidelity_table(found)
    caption = "KL: mean divergence of the next token's distribution from the dense one, in nats"
    sets, sums = rows[: len(found)], rows[len(found) :]
    return text_table("agreement with the dense model", header, sets, last=sums, caption=caption)


def _own_texts(found: Mapping[str, Any]) -> Table:
    """Return what clients measured on texts of their own, the worst first."""
    clients = sorted(found["clients"].items(), key=lambda one: -(one[1]["ratio"] or float("inf")))
    rows = [
        [f"{name} (worst)" if name == found["worst"] else name, *_own_figures(figures)]
        for name, figures in clients[:_MOST_CLIENTS]
    ]
    if len(clients) > _MOST_CLIENTS:
        rows.append([f"and {len(clients) - _MOST_CLIENTS} more"])
    return text_table(
        "on each client's own held-out texts",
        ["client", "tokens", MODELS["dense"], MODELS[FEDERATED], "ratio"],
        rows,
        last=[["mean over tokens", *_own_figures(found["mean"])]] if found["mean"] else (),
        caption="\n".join(f"{name} is left out: {why}" for name, why in found["left_out"].items()),
    )


def _zero_shot(found: Mapping[str, Any]) -> Table:
    """Return accuracies of tasks; of one that has none, its first metric."""
    dense, pruned = found["dense"], found["pruned"]
    rows = [
        [name, metric, *(_number(score, 4) for score in scores)]
        for name, metric, *scores in task_scores(found)
    ]
    mean = ["mean", "acc", _number(dense["mean"], 4), _number(pruned["mean"], 4)]
    return text_table(
        "zero-shot tasks",
        ["task", "metric", MODELS["dense"], MODELS[FEDERATED]],
        rows,
        last=[] if dense["mean"] is None else [mean],
        caption=f"lm-evaluation-harness {dense['harness']}",
    )


def _own_figures(figures: Mapping[str, Any]) -> list[str]:
    values = [_number(figures[key]) for key in ("dense", "pruned", "ratio")]
    return [f"{figures['tokens']:,}", *values]


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _geometric_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.geometric_mean(known) if len(known) == len(values) else None


def _caption(results: Mapping[str, Any]) -> str:
    ledger, clients, agreement = results["ledger"], results["clients"], results.get("agreement")
    of_dense, refused = ledger.get("of_dense", {}), sum(ledger["refused"].values())
    parts = [size_change(results)] if results.get("smaller") else []
    if worst := served_worst(results["perplexity"]):
        parts.append(f"worst on {worst[0]}, {worst[1]:.2f} times dense")
    parts += [
        count(len(clients), "client"),
        f"{size_text(ledger['bytes_up'])} up, {size_text(ledger['bytes_down'])} down",
    ]
    if brought := ledger.get("model_bytes", 0):
        parts.append(f"{size_text(brought)} to bring nodes the model")
    if share := of_dense.get("share_of_dense"):
        bits = of_dense["bits_per_weight"]
        parts.append(f"a client sends {bits:.2f} bits a weight, {share:.1%} of dense")
    if agreement:
        parts.append(f"clients agree on {agreement['pairwise']:.1%} of the weights")
    parts.append(f"{results['seconds']['total']:.1f} s")
    if refused:
        parts.append(f"{count(refused, 'reply', 'replies')} refused")
    for dataset, values in results["perplexity"].items():
        for model, what in values.get("no_number", {}).items():
            parts.append(f"{MODELS[model]} on {dataset} is {what}: the log says where it begins")
    return " · ".join(parts)
