"""Whose perplexity is measured, what people call it, and one figure for many data sets."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import Any

from fedprune.results.build import spread
from fedprune.results.text import NONE

DENSE = "dense"
FEDERATED = "pruned"
NO_CLIENT = "no_client"
MODELS: Mapping[str, str] = {
    DENSE: "dense",
    NO_CLIENT: "no client",
    "local_only.best": "one client alone, best",
    "local_only.mean": "one client alone, mean",
    "local_only.worst": "one client alone, worst",
    FEDERATED: "federated",
    "centralized": "centralised",
}
"""Path in what `perplexity` of `results.json` has for a data set -> what people call that model."""

GEOMETRIC_MEAN = "geometric mean"
WORST = "worst data set"
WORST_RISE = "worst data set, as a multiple of dense"
SUMMARIES = (GEOMETRIC_MEAN, WORST, WORST_RISE)
"""Their names."""

# A client alone is summarised client by client.
_WHOLE = (DENSE, NO_CLIENT, FEDERATED, "centralized")

_Summary = Callable[[Sequence[float], Sequence[float]], float]


def perplexity_at(measured: Mapping[str, Any], path: str) -> float | None:
    """Return a model's perplexity, None where it was not measured.

    `measured`: what `perplexity` of `results.json` has for a data set. `path`: one of
    :data:`MODELS`.
    """
    found: Any = measured
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def headline(perplexity: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """Return name and figures to put first: of the only data set, or the mean over all."""
    found = {**summaries(perplexity), **perplexity}
    name = GEOMETRIC_MEAN if GEOMETRIC_MEAN in found else next(iter(found), "")
    return name, found.get(name, {})


def summaries(perplexity: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return summaries over the data sets, in the form that each data set has in `results.json`.

    A client alone is summarised over its own figures before clients are compared: the best client
    is one client. A model that has no figure on one of the data sets has no summary.

    `perplexity`: `perplexity` of `results.json`: data set -> model -> figure. Returns name of a
    summary -> model -> figure: the geometric mean, the highest perplexity, and the highest share of
    perplexity to that of the dense model. Empty where there are not two data sets that the dense
    model was measured on.
    """
    measured = [values for values in perplexity.values() if values.get(DENSE) is not None]
    if len(measured) < 2:
        return {}
    dense = [float(values[DENSE]) for values in measured]
    return {name: _summary(measured, dense, how) for name, how in _SUMMARIES.items()}


def served_worst(perplexity: Mapping[str, Mapping[str, Any]]) -> tuple[str, float] | None:
    """Return the data set on which the federated model lost most, and its multiple of dense.

    None where there are not two data sets with figures of both models.
    """
    rises = {
        name: values[FEDERATED] / values[DENSE]
        for name, values in perplexity.items()
        if values.get(DENSE) is not None and values.get(FEDERATED) is not None
    }
    return max(rises.items(), key=lambda rise: rise[1]) if len(rises) > 1 else None


def task_scores(
    zero_shot: Mapping[str, Any],
) -> list[tuple[str, str, float | None, float | None]]:
    """Return task, metric and scores before and after; of one without accuracy its first metric.

    `zero_shot`: `zero_shot` of `results.json`.
    """
    dense, pruned = zero_shot["dense"]["tasks"], zero_shot["pruned"]["tasks"]
    metrics = {name: "acc" if "acc" in one else next(iter(one), "") for name, one in dense.items()}
    return [
        (name, metric, dense[name].get(metric), pruned.get(name, {}).get(metric))
        for name, metric in metrics.items()
    ]


def fidelity_table(
    fidelity: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of how close models stay to the dense one, as texts.

    `fidelity`: `fidelity` of `results.json`: data set -> model -> `kl` in nats, None if it is no
    number, and `top1`, a share. Returns two columns a model. A row a data set; of several also
    their mean and the worst of each figure.
    """
    models = _measured(fidelity)
    header = ["data set"]
    for path in models:
        header += [f"KL, {MODELS[path]}", f"same top token, {MODELS[path]}"]
    lines = {**fidelity, **fidelity_summaries(fidelity)}
    places = [(path, key) for path in models for key in _CLOSE]
    rows = [
        [name, *(_written(one[path][key], key) for path, key in places)]
        for name, one in lines.items()
    ]
    return header, rows


def fidelity_summaries(
    fidelity: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return "mean" and the worst data set -> model -> `kl` and `top1`; {} of a single data set."""
    if len(fidelity) < 2:
        return {}
    columns = {
        path: {key: [one[path][key] for one in fidelity.values()] for key in _CLOSE}
        for path in _measured(fidelity)
    }
    return {
        name: {
            path: {key: _over(found[key], ends[key]) for key in _CLOSE}
            for path, found in columns.items()
        }
        for name, ends in _ENDS.items()
    }


def _measured(fidelity: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [path for path in _WHOLE if any(path in one for one in fidelity.values())]


_CLOSE = {"kl": ".4f", "top1": ".1%"}  # figure -> how it is written
_ENDS: Mapping[str, Mapping[str, Callable[..., float]]] = {
    "mean": {"kl": fmean, "top1": fmean},
    WORST: {"kl": max, "top1": min},
}


def _over(column: Sequence[float | None], how: Callable[..., float]) -> float | None:
    known = [value for value in column if value is not None]
    return how(known) if len(known) == len(column) else None


def _written(value: float | None, key: str) -> str:
    return NONE if value is None else format(value, _CLOSE[key])


def _summary(
    measured: Sequence[Mapping[str, Any]], dense: Sequence[float], how: _Summary
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for model in _WHOLE:
        values = [one.get(model) for one in measured]
        found[model] = _applied(how, values, dense)
    clients = [(one.get("local_only") or {}).get("clients", {}) for one in measured]
    local = {name: _applied(how, [one.get(name) for one in clients], dense) for name in clients[0]}
    found["local_only"] = {**spread(local.values()), "clients": local} if local else None
    return found


def _applied(how: _Summary, values: Sequence[float | None], dense: Sequence[float]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return how(known, dense) if len(known) == len(values) else None


def _worst_rise(values: Sequence[float], dense: Sequence[float]) -> float:
    return max(value / base for value, base in zip(values, dense, strict=True))


_SUMMARIES: Mapping[str, _Summary] = {
    GEOMETRIC_MEAN: lambda values, dense: geometric_mean(values),
    WORST: lambda values, dense: max(values),
    WORST_RISE: _worst_rise,
}
