"""What the page of a run shows, gathered from `results.json` for its template."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprune.report.agreement import matrix, votes
from fedprune.report.charts import Column, ColumnChart, HeatMap
from fedprune.report.clients import Client, clients, split_name
from fedprune.report.cost import by_round, phases, rounds
from fedprune.report.linears import Grid, by_block, reporters
from fedprune.report.notes import by_chance, notes
from fedprune.results import text
from fedprune.results.perplexity import (
    DENSE,
    FEDERATED,
    GEOMETRIC_MEAN,
    MODELS,
    NO_CLIENT,
    fidelity_table,
    headline,
    perplexity_at,
    served_worst,
    summaries,
    task_scores,
)
from fedprune.results.words import loading_code, secure_sentences

_SCHEDULES = {"one_shot": "one shot", "iterative": "iterative"}
_TOLD = ("strategy", "schedule", "pruner", "pattern", "group", "prefix", "allocation")
_MOST = 24  # clients that are shown at once
_WORST, _BEST = 12, 4
_MOST_OWN = 12  # clients whose own texts are shown at once


def run_view(results: Mapping[str, Any], config: str, folder: Path) -> dict[str, Any]:
    """Return what the template needs; parameters as :func:`fedprune.report.page.render_page`."""
    name, first = headline(results["perplexity"])
    found = rounds(results["ledger"]["entries"])
    agreement, behind = results["agreement"], reporters(results["sparsity"])
    return {
        "results": results,
        "config": config,
        "model": _model_name(results),
        # Results of older versions have only its key.
        "method": results["strategy"].get("label") or results["method"]["strategy"],
        "schedule": _SCHEDULES.get(results["method"]["schedule"], results["method"]["schedule"]),
        "headline": {"name": name}
        | {path: first.get(path) for path in (DENSE, NO_CLIENT, FEDERATED, "centralized")},
        "notes": notes(results),
        "perplexity": _perplexities(results, name, first),
        "worst": served_worst(results["perplexity"]),
        "fidelity": fidelity_table(results["fidelity"]) if results.get("fidelity") else None,
        "own_texts": _own_texts(results.get("federated_evaluation")),
        "tasks": _tasks(results.get("zero_shot")),
        "zeros": _heat("Sparsity", by_block(results["sparsity"]["linears"])),
        "behind": _behind(behind) if len(set(behind.values())) > 1 else None,
        "chance": by_chance(results["sparsity"]["overall"]),
        "votes": votes(agreement["votes_by_voters"]) if agreement else None,
        "matrix": matrix(agreement.get("clients") or {}) if agreement else None,
        "agreeing": _heat("Agreement", by_block(agreement["linears"])) if agreement else None,
        "clients": _clients(clients(results), name, first.get("pruned")),
        "sent": _sent(results),
        "rounds": found,
        "by_round": by_round(results, found),
        "phases": phases(results["seconds"]),
        "code": _code(results, folder),
        "sizes": _sizes(results.get("sizes")),
        "speed": _speed(results.get("speed")),
        "smaller": results.get("smaller"),
        "change": text.size_change(results) if results.get("smaller") else "",
        "does": _does(results),
        "options": ", ".join(
            f"{key} {str(value).lower() if isinstance(value, bool | None) else value}"
            for key, value in results["method"].items()
            if key not in _TOLD
        ),
    }


def _model_name(results: Mapping[str, Any]) -> str:
    """Return what people call the model: the last part of its path, or its configured name."""
    model = results["model"]
    return str(model["path"]).rstrip("/").rpartition("/")[2] or str(model["name"])


def _does(results: Mapping[str, Any]) -> str:
    """Return what clients send and the server makes of it."""
    words = results["strategy"]
    does = str(words.get("does") or words.get("sends", ""))
    return f"{does}. {secure_sentences(words['secure'])}" if "secure" in words else does


@dataclass(frozen=True)
class Perplexities:
    """The table of perplexities."""

    columns: list[str]  # data sets, and the mean over several
    # model, the client that its figure is of, perplexities, quotient to the dense model's of the
    # last column, and whether it is the federated one
    rows: list[tuple[str, str, list[float | None], float | None, bool]]
    most: float  # the largest rise over the dense model


def _perplexities(
    results: Mapping[str, Any], name: str, first: Mapping[str, Any]
) -> Perplexities | None:
    found: dict[str, Mapping[str, Any]] = dict(results["perplexity"])
    if first.get(DENSE) is None:
        return None
    if name == GEOMETRIC_MEAN:
        found[name] = summaries(results["perplexity"])[name]
    rows = []
    for path, label in MODELS.items():
        figures = [perplexity_at(values, path) for values in found.values()]
        if path == FEDERATED or any(value is not None for value in figures):
            value = perplexity_at(first, path)
            rise = None if value is None else value / first[DENSE]
            rows.append((label, _who(first, path), figures, rise, path == FEDERATED))
    return Perplexities([*found], rows, max([(row[3] or 1.0) - 1 for row in rows]))


def _who(values: Mapping[str, Any], path: str) -> str:
    """Return the client that the best or the worst figure is of."""
    alone, _, which = path.rpartition(".")
    if not alone or which == "mean":
        return ""
    local = values.get(alone) or {}
    found = (name for name, v in local.get("clients", {}).items() if v == local[which])
    return ", ".join(filter(None, split_name(next(found, ""))))


@dataclass(frozen=True)
class OwnTexts:
    """Perplexities on clients' own texts: name, partition and figures, the worst client first."""

    rows: list[tuple[str, str, Mapping[str, Any]]]
    clients: int
    most: float
    shown: int
    left_out: list[tuple[str, str]]


def _own_texts(found: Mapping[str, Any] | None) -> OwnTexts | None:
    if not found:
        return None
    figures: Mapping[str, Mapping[str, Any]] = found["clients"]
    ranked = sorted(figures, key=lambda name: -(figures[name]["ratio"] or float("inf")))
    rows = [(*split_name(name), figures[name]) for name in ranked]
    if found["mean"]:
        rows.insert(0, ("All texts as one", "", found["mean"]))
    most = max([(one["ratio"] or 1.0) - 1 for one in figures.values()] + [0.0])
    left_out = list(found["left_out"].items())[:_MOST_OWN]
    return OwnTexts(rows, len(ranked), most, _MOST_OWN + 1, left_out)


def _tasks(found: Mapping[str, Any] | None) -> list[tuple[str, str, float | None, float | None]]:
    if not found:
        return []
    means = found["dense"]["mean"], found["pruned"]["mean"]
    return [*task_scores(found), ("Mean accuracy", "", *means)]


@dataclass(frozen=True)
class ByBlock:
    """A figure by block and kind of linear: its map, its grid, and what it is."""

    what: str
    heat: HeatMap
    grid: Grid


def _heat(what: str, grid: Grid) -> ByBlock | None:
    known = [value for row in grid.cells for value in row if value is not None]
    if not known:
        return None
    ends = f"from {text.percent(min(known))} to {text.percent(max(known))}"
    label = f"{what} by block and kind of linear, {ends}"
    blocks = [str(block) for block in grid.blocks]
    return ByBlock(what, HeatMap(label, grid.kinds, blocks, grid.cells, text.percent), grid)


def _behind(behind: Mapping[int, int]) -> ColumnChart:
    """Return the clients whose replies were counted for each block."""
    columns = [
        Column(str(block), count, str(count), "" if count else "bad")
        for block, count in behind.items()
    ]
    label = f"Clients by block, from {min(behind.values())} to {max(behind.values())}"
    return ColumnChart(label, columns, lambda value: f"{value:g}")


@dataclass(frozen=True)
class ClientTable:
    """The clients: those that are shown at once, all of them, and what is known of them."""

    # few, every: shown at once, from the one that does worst alone; all, in the order of partitions
    few: Sequence[Client]
    every: Sequence[Client]
    dataset: str  # what their own models were measured on; "" if they were not
    # agreement, blocks: whether it is known how far they agree with the result, and what each
    # pruned
    agreement: bool
    blocks: bool
    pruned: float | None  # perplexity of the federated model
    # the least and the largest perplexity among those shown and the federated model's
    ends: tuple[float, float]
    # worst, best: how many of either end are shown, where not all are
    worst: int = _WORST
    best: int = _BEST

    def at(self, value: float) -> float:
        """Return where a perplexity stands between the ends, 0 to 1."""
        low, high = self.ends
        return (value - low) / (high - low) if high > low else 0.5

    def name(self, client: Client) -> tuple[str, str]:
        """Return a client's site, and its partition with when it was left out."""
        site, partition = split_name(client.name)
        left = "" if client.left is None else f"left out in round {client.left}"
        return site, ", ".join(filter(None, (partition, left)))


def _clients(found: Sequence[Client], dataset: str, pruned: float | None) -> ClientTable:
    ranked = sorted(found, key=_rank)
    few = ranked if len(ranked) <= _MOST else ranked[:_WORST] + ranked[-_BEST:]
    known = [client.perplexity for client in few if client.perplexity is not None]
    both = [*known, pruned] if pruned is not None else known
    measured = any(client.perplexity is not None for client in found)
    return ClientTable(
        few=few,
        every=found,
        dataset=dataset if measured else "",
        agreement=any(client.agreement is not None for client in found),
        blocks=any(client.blocks is not None for client in found),
        pruned=pruned,
        ends=(min(both, default=0.0), max(both, default=1.0)),
    )


def _rank(client: Client) -> tuple[float, float]:
    worst = client.perplexity if client.perplexity is not None else float("inf")
    return -worst, client.agreement if client.agreement is not None else 1.0


def _sent(results: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Return what a client sent, beside one bit a weight and its dense weights."""
    of_dense = results["ledger"]["of_dense"]
    found = [
        ("This run", of_dense["up_per_client"], "own"),
        ("One bit a weight", results["sparsity"]["weights"] / 8, "other"),
        ("Dense weights", of_dense["dense_bytes"], "other"),
    ]
    return found if of_dense["dense_bytes"] else found[:2]


def _sizes(found: Mapping[str, float] | None) -> list[tuple[str, float]]:
    """Return what the exported files take; nothing where results do not tell."""
    names = {
        "base": "The dense model",
        "dense": "Safetensors, zeros written out, codes packed",
        "masks": "Masks beside them",
        "bits_and_values": "Masks and surviving values alone, by count",
    }
    return [(name, found[key]) for key, name in names.items() if key in found] if found else []


def _speed(found: Mapping[str, Mapping[str, float]] | None) -> list[list[str]]:
    """Return what serving each model takes, a row each."""
    return [
        [
            MODELS[name],
            f"{one['prompt']:,.0f}",
            f"{one['prompt_ratio']:.2f}x",
            f"{one['generation']:,.0f}",
            f"{one['generation_ratio']:.2f}x",
            text.size(one["peak_bytes"]),
        ]
        for name, one in (found or {}).items()
    ]


def _code(results: Mapping[str, Any], folder: Path) -> tuple[str, str] | None:
    """Return Python that loads the exported model and the command that measures it again."""
    if not (folder / "model").is_dir():
        return None
    model = str(folder / "model")
    return loading_code(results, model), f"fedprune evaluate {shlex.quote(model)}"
