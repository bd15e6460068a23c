"""Perplexity of all models, and of one client alone."""

from collections.abc import Mapping
from typing import Any

from fedprune.report.markup import Content, Html, join, tag
from fedprune.report.people import measured, split_name
from fedprune.report.tables import table, with_bar
from fedprune.results import text
from fedprune.results.perplexity import GEOMETRIC_MEAN, summaries

_MODELS = (
    ("Dense", ("dense",)),
    ("One client alone, best", ("local_only", "best")),
    ("One client alone, mean", ("local_only", "mean")),
    ("One client alone, worst", ("local_only", "worst")),
    ("Federated", ("pruned",)),
    ("Centralised", ("centralized",)),
)


def perplexity(results: Mapping[str, Any]) -> Html:
    """Return the table of perplexities with what each adds to the dense model's."""
    found: dict[str, Mapping[str, Any]] = dict(results["perplexity"])
    name, first = measured(results)
    if not found or first.get("dense") is None:
        return tag("p", "Perplexity was not measured: there was no text for it here.")
    if name == GEOMETRIC_MEAN:
        found[name] = summaries(results["perplexity"])[name]
    rows: list[list[Content]] = []
    rises = [_rise(first, path) for _, path in _MODELS]
    most = max([rise - 1 for rise in rises if rise is not None] + [0.0])
    for (label, path), rise in zip(_MODELS, rises, strict=True):
        figures = [_value(values, path) for values in found.values()]
        if label != "Federated" and all(value is None for value in figures):
            continue
        added: Content = text.NONE
        if rise is not None and label != "Dense":
            kind = "own" if label == "Federated" else "other"
            added = with_bar(text.rise(rise), (rise - 1) / most if most else 0.0, kind)
        who = _who(first, path)
        title = join([label, tag("small", who)]) if who else label
        rows.append([title, *(text.figure(value) for value in figures), added])
    header = ["Model", *found, f"Above dense ({name})" if len(found) > 1 else "Above dense"]
    place = next(at for at, row in enumerate(rows) if row[0] == "Federated")
    return join(
        [
            tag("p", _aid(first), class_="aid"),
            table("Perplexity by model and data set", header, rows, place),
        ]
    )


def _aid(values: Mapping[str, Any]) -> str:
    aid = "Lower is better; bars show what pruning adds to the dense model's perplexity."
    pruned, central = values.get("pruned"), values.get("centralized")
    if pruned is not None and central is not None:
        aid += (
            f" Federated is {text.beside(pruned / central)} centralised: all samples in one place."
        )
    return aid


def _value(values: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def _rise(values: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value = _value(values, path)
    return None if value is None else value / float(values["dense"])


def _who(values: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Return the client that the best or the worst figure is of."""
    if path[-1] not in ("best", "worst"):
        return ""
    local = values.get("local_only") or {}
    found = (name for name, v in local.get("clients", {}).items() if v == local[path[-1]])
    return ", ".join(filter(None, split_name(next(found, ""))))
