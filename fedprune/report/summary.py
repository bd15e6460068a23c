"""The top of the page: what was run, the figures that matter, and what to be careful about."""

from collections.abc import Mapping
from typing import Any

from fedprune.report.markup import Content, Html, join, prose, tag
from fedprune.report.notes import Note, notes
from fedprune.report.people import measured
from fedprune.results import text

_STRATEGIES = {
    "fedprllm": ("FedPrLLM", "clients send masks, the server counts votes"),
    "fedspallm": ("FedSpaLLM", "clients send surviving weights, the server averages them"),
    "fedstats": ("FedStats", "clients send column statistics, the server prunes with the sum"),
    "fedhessian": ("FedHessian", "clients send second moments, the server prunes with the sum"),
}
_SCHEDULES = {"one_shot": "one shot", "iterative": "iterative"}
_LEVELS = {"problem": "Problem", "warning": "Warning", "hint": "Note"}
_TOLD = ("strategy", "schedule", "pruner", "pattern", "group", "prefix", "allocation", "plugin")


def strategy_name(results: Mapping[str, Any]) -> str:
    """Return what people call the strategy: a plugin by its own name."""
    name = str(results["method"]["strategy"])
    return str(results["method"].get("plugin") or _STRATEGIES[name][0])


def model_name(results: Mapping[str, Any]) -> str:
    """Return what people call the model: the last part of its path, or its configured name."""
    model = results["model"]
    return str(model["path"]).rstrip("/").rpartition("/")[2] or str(model["name"])


def header(results: Mapping[str, Any]) -> Html:
    """Return the title."""
    method, overall = results["method"], results["sparsity"]["overall"]
    parts = [
        strategy_name(results),
        method["pruner"],
        method["pattern"],
        _SCHEDULES.get(method["schedule"], method["schedule"]),
        text.count(len(results["clients"]), "client"),
        f"seed {results['seed']}",
    ]
    return tag(
        "header",
        tag("p", "fedprune · report of a run", class_="over-title"),
        tag("h1", f"{model_name(results)}, {text.percent(overall)} pruned"),
        tag("p", " · ".join(parts), class_="under-title"),
    )


def headlines(results: Mapping[str, Any]) -> Html:
    """Return a tile for each figure that a reader looks for first."""
    sparsity, of_dense = results["sparsity"], results["ledger"]["of_dense"]
    zeros = f"{sparsity['zeros']:,} of {sparsity['weights']:,} weights are zero"
    tiles = [_tile("Sparsity", text.percent(sparsity["overall"]), zeros)]
    name, values = measured(results)
    pruned, dense = values.get("pruned"), values.get("dense")
    if dense is not None:
        beside = f"dense {text.figure(dense)}"
        if pruned is not None:
            beside = f"{text.beside(pruned / dense)} dense ({text.figure(dense)})"
        tiles.append(_tile("Perplexity", text.figure(pruned), f"{beside}, {name}"))
    bits = of_dense.get("bits_per_weight")
    if bits is not None:
        share = text.percent(of_dense["share_of_dense"])
        detail = f"{bits:.2f} bits a weight, {share} of the dense weights"
        tiles.append(_tile("Sent by a client", text.size(of_dense["up_per_client"]), detail))
    if results["agreement"]:
        detail = "of the weights two clients treat the same"
        tiles.append(_tile("Agreement", text.percent(results["agreement"]["pairwise"]), detail))
    clients, took = results["clients"], results["seconds"]["total"]
    samples = sum(client["samples"] for client in clients)
    tiles.append(_tile("Clients", f"{len(clients):,}", f"{samples:,} calibration samples"))
    prune = results["seconds"].get("prune")
    detail = f"of it pruning {text.seconds(prune)}" if prune is not None else "in all"
    tiles.append(_tile("Time", text.seconds(took), detail))
    return tag("div", *tiles, class_="tiles")


def _tile(name: str, value: str, detail: str) -> Html:
    return tag(
        "dl",
        tag("dt", name),
        tag("dd", value, class_="value"),
        tag("dd", detail, class_="detail"),
        class_="tile",
    )


def careful(results: Mapping[str, Any]) -> Html:
    """Return the warnings, or that there are none."""
    found = notes(results)
    if not found:
        return tag("p", "Nothing to warn of: all replies were used.")
    return tag("ul", *map(_note, found), class_="notes")


def _note(note: Note) -> Html:
    return tag(
        "li",
        tag("span", _LEVELS[note.level], class_="level"),
        tag("div", tag("strong", note.title), tag("p", prose(note.detail))),
        class_=note.level,
    )


def what_was_run(results: Mapping[str, Any]) -> Html:
    """Return model, method and clients in words."""
    method, model = results["method"], results["model"]
    schedule = _SCHEDULES.get(method["schedule"], method["schedule"])
    if method["schedule"] == "one_shot":
        schedule += f"; earlier blocks {method['prefix']}"
    weights = f"{results['sparsity']['weights']:,} prunable weights"
    facts: list[tuple[str, Content]] = [
        ("Model", f"{model_name(results)}, {weights}"),
        ("Fingerprint", tag("code", model["weights_hash"][:16])),
        ("Strategy", f"{strategy_name(results)}: {_what_it_does(method)}"),
        (
            "Pruner",
            f"{method['pruner']}, {method['pattern']}, compared by {method['group']}",
        ),
        ("Sparsity", f"{text.percent(results['sparsity']['target'])}, {method['allocation']}"),
        ("Schedule", schedule),
        ("Clients", f"{len(results['clients']):,} with {_tokens(results)}"),
        ("Options", _options(method)),
        ("Run", tag("code", results["run_id"])),
        ("Software", ", ".join(f"{name} {v}" for name, v in results["versions"].items())),
    ]
    rows = [join([tag("dt", name), tag("dd", value)]) for name, value in facts if value]
    return tag("dl", *rows, class_="facts")


def _what_it_does(method: Mapping[str, Any]) -> str:
    name, does = _STRATEGIES[method["strategy"]]
    return f"a plugin, with the clients of {name}" if "plugin" in method else does


def _tokens(results: Mapping[str, Any]) -> str:
    tokens = sum(client["tokens"] for client in results["clients"])
    return f"{tokens:,} calibration tokens"


def _options(method: Mapping[str, Any]) -> str:
    others = {key: value for key, value in method.items() if key not in _TOLD}
    return ", ".join(f"{key} {_plain(value)}" for key, value in others.items())


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
