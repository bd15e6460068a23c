"""One figure for several data sets: the mean over all of them, and the one that suffers most."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import geometric_mean
from typing import Any

from fedprune.results.build import spread

GEOMETRIC_MEAN = "geometric mean"
WORST = "worst data set"
WORST_RISE = "worst data set, as a multiple of dense"
SUMMARIES = (GEOMETRIC_MEAN, WORST, WORST_RISE)
"""Their names."""

_DENSE = "dense"
_MODELS = (_DENSE, "pruned", "centralized")

_Summary = Callable[[Sequence[float], Sequence[float]], float]


def summaries(perplexity: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return summaries over the data sets, in the form that each data set has in `results.json`.

    A client alone is summarised over its own figures before clients are compared: the best client
    is one client. A model that has no figure on one of the data sets has no summary.

    Parameters
    ----------
    perplexity : Mapping
        `perplexity` of `results.json`: data set -> model -> figure.

    Returns
    -------
    dict
        Name of a summary -> model -> figure: the geometric mean, the highest perplexity, and the
        highest share of perplexity to that of the dense model. Empty where there are not two data
        sets that the dense model was measured on.
    """
    measured = [values for values in perplexity.values() if values.get(_DENSE) is not None]
    if len(measured) < 2:
        return {}
    dense = [float(values[_DENSE]) for values in measured]
    return {name: _summary(measured, dense, how) for name, how in _SUMMARIES.items()}


def _summary(
    measured: Sequence[Mapping[str, Any]], dense: Sequence[float], how: _Summary
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for model in _MODELS:
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
