"""What clients measured of a pruned model on texts of their own, put together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedprune.evaluation.perplexity import perplexity_of


@dataclass(frozen=True)
class OwnTextResult:
    """How well two models predict a node's own held-out text; only these numbers leave the node."""

    # dense_nll, pruned_nll: mean negative log-likelihood of a predicted token, in nats
    dense_nll: float
    pruned_nll: float
    tokens: int  # tokens predicted; 0 if the node's held-out text does not fill one window

    @property
    def growth(self) -> float:
        """Logarithm of the factor by which the perplexity grew."""
        return self.pruned_nll - self.dense_nll


def own_text_figures(
    results: Mapping[str, OwnTextResult], left_out: Mapping[str, str]
) -> dict[str, object]:
    """Return the comparison over all clients as plain JSON values.

    The mean is that of the log-likelihoods of all clients' tokens, as if their texts were one.
    The worst client is the one whose perplexity grew by the largest factor.

    `results`: client -> what it measured, on at least one token. `left_out`: client -> why it is
    not in the mean.
    """
    total = sum(found.tokens for found in results.values())
    worst = max(results, key=lambda name: results[name].growth, default=None)
    mean = None
    if total:
        mean = OwnTextResult(
            sum(found.dense_nll * found.tokens for found in results.values()) / total,
            sum(found.pruned_nll * found.tokens for found in results.values()) / total,
            total,
        )
    return {
        "clients": {name: _figures(found) for name, found in results.items()},
        "mean": None if mean is None else _figures(mean),
        "worst": worst,
        "left_out": dict(left_out),
    }


def _figures(found: OwnTextResult) -> dict[str, float | int | None]:
    return {
        "tokens": found.tokens,
        "dense": _finite(found.dense_nll),
        "pruned": _finite(found.pruned_nll),
        "ratio": _finite(found.growth),
    }


def _finite(nll: float) -> float | None:
    """Return exp(nll), None where JSON has no number for it."""
    value = perplexity_of(nll)
    return value if math.isfinite(value) else None
