"""Builds `results.json`; `docs/results.md` describes every key.

Only numbers, names and hashes: nothing in it derives from a client's text other than through
the figures themselves.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from fedprune.config import RunConfig
from fedprune.results.environment import peak_rss_bytes, versions
from fedprune.results.ledger import APART, Ledger
from fedprune.results.words import Words

if TYPE_CHECKING:  # it loads torch, which the command line does not need to show a table
    from fedprune.models.fingerprint import Fingerprint

FORMAT = 1
FEW_TOKENS = 100
"""Tokens of all clients below which results count an expert among those that saw few."""


@dataclass(frozen=True)
class Facts:
    """What was run, on what, and how long it took."""

    config: RunConfig
    words: Words  # what the method says of itself
    run_id: int  # Flower's number of the run
    fingerprint: "Fingerprint"
    code_hash: str
    seconds: Mapping[str, float]  # phase -> how long it took; "total" is all of them
    # what the strategy tells of itself: the allocation, the draw of layers, violations
    figures: Mapping[str, object] = field(default_factory=dict)
    # the prunable weights as they are stored: what a client would send of a dense model
    dense_bytes: int = 0
    # of the model: `fedprune.models.unread.describe`
    architecture: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class LinearFigures:
    """One pruned linear."""

    name: str  # full name, for example "model.layers.0.mlp.up_proj"
    # weights, zeros: entries, and how many of them were pruned
    weights: int
    zeros: int
    voters: int  # clients whose replies were counted
    # entries by prune votes, from none to the weight of all voters together, which is their number
    # where all weigh the same. Empty where clients send no masks.
    votes: list[int]
    agreement: float | None  # share of weights on which a pair of clients agrees, mean over pairs
    unanimous: float | None  # share of weights on which all clients agree
    # weights with the vote count at which pruning stopped, if only some of them were pruned, and
    # how many were
    tied: tuple[int, int] = (0, 0)
    expert: str = ""  # full name of the routed expert that it belongs to; "" for none
    # tokens of all clients together that were routed to the expert, where that is known: of clients
    # that send masks only that there were none
    tokens: int | None = None


@dataclass(frozen=True)
class ClientAgreement:
    """Agreement client by client, on a sample of weights."""

    weights: int
    result: Mapping[str, float]  # client -> share on which its mask is as the global one
    # rows and columns of the matrix: all, or of many those that agree most and least
    clients: Sequence[str]
    # share on which two clients' masks are the same; None where they pruned no common block
    matrix: list[list[float | None]]


@dataclass(frozen=True)
class Fidelity:
    """How far a model's predictions are the dense model's."""

    # mean Kullback-Leibler divergence of the next token's distribution from the dense model's, in
    # nats; 0 if it is the dense model's
    kl: float
    top1: float  # share of tokens for which both find the same token most likely


@dataclass(frozen=True)
class Perplexities:
    """What was measured on one data set; None where it was not, `local` by client name."""

    dataset: str
    dense: float | None
    pruned: float | None
    centralized: float | None
    local: Mapping[str, float]
    fidelity: Mapping[str, Fidelity] = field(default_factory=dict)
    no_client: float | None = None


def build_results(
    facts: Facts,
    linears: Sequence[LinearFigures],
    perplexities: Sequence[Perplexities],
    clients: Sequence[Mapping[str, object]],
    ledger: Ledger,
    agreement: ClientAgreement | None = None,
) -> dict[str, object]:
    """Return the content of `results.json` as plain JSON values."""
    config = facts.config
    return {
        "format": FORMAT,
        "status": "completed",
        "run_id": str(facts.run_id),
        "seed": config.seed,
        "method": _method(config),
        "model": {
            "name": config.model.name,
            "path": config.model.path,
            "config_hash": facts.fingerprint.config,
            "weights_hash": facts.fingerprint.weights,
            **facts.architecture,
        },
        "sparsity": _sparsity(config.sparsity, linears),
        "perplexity": {found.dataset: _perplexity(found) for found in perplexities},
        "fidelity": {
            found.dataset: {
                model: {"kl": _finite(one.kl), "top1": one.top1}
                for model, one in found.fidelity.items()
            }
            for found in perplexities
            if found.fidelity
        },
        "agreement": _agreement(config, linears, agreement),
        "experts": _experts(linears),
        "strategy": {**asdict(facts.words), **facts.figures},
        "clients": [dict(client) for client in clients],
        "seconds": dict(facts.seconds),
        "peak_server_rss_bytes": peak_rss_bytes(),
        "ledger": {**ledger.to_dict(), "of_dense": _of_dense(facts, ledger, linears, len(clients))},
        "code_hash": facts.code_hash,
        "versions": versions(),
    }


def _of_dense(
    facts: Facts, ledger: Ledger, linears: Sequence[LinearFigures], clients: int
) -> dict[str, object]:
    """Return what a client sends for pruning beside its dense weights, and beside one bit each."""
    up = sum(e.bytes_up for e in ledger.entries if e.phase not in APART) / max(1, clients)
    bits = sum(linear.weights for linear in linears)
    return {
        "up_per_client": up,
        "dense_bytes": facts.dense_bytes,
        "share_of_dense": up / facts.dense_bytes if facts.dense_bytes else None,
        "bits_per_weight": 8 * up / bits if bits else None,
    }


def _sparsity(target: float, linears: Sequence[LinearFigures]) -> dict[str, object]:
    weights = sum(linear.weights for linear in linears)
    zeros = sum(linear.zeros for linear in linears)
    return {
        "target": target,
        "overall": zeros / weights,
        "weights": weights,
        "zeros": zeros,
        "linears": {linear.name: linear.zeros / linear.weights for linear in linears},
        "reporters": {linear.name: linear.voters for linear in linears},
    }


def _experts(linears: Sequence[LinearFigures]) -> dict[str, object] | None:
    """Return how many experts saw few tokens of all clients together.

    None without experts, and where neither sums nor votes tell.
    """
    tokens: dict[str, set[int | None]] = {}
    for linear in linears:
        if linear.expert:
            tokens.setdefault(linear.expert, set()).add(linear.tokens)
    if not any(linear.expert and (linear.votes or linear.tokens is not None) for linear in linears):
        return None
    known = all(None not in found for found in tokens.values())
    few = sum(min(one or 0 for one in found) < FEW_TOKENS for found in tokens.values())
    return {
        "experts": len(tokens),
        "unseen": sum(0 in found for found in tokens.values()),
        "few_tokens": FEW_TOKENS,
        # Masks tell of an expert that nobody saw, not how often the others were.
        "few": few if known else None,
    }


def _perplexity(found: Perplexities) -> dict[str, object]:
    clients = {name: _finite(value) for name, value in found.local.items()}
    local = {**spread(clients.values()), "clients": clients} if clients else None
    whole = {
        "dense": found.dense,
        "no_client": found.no_client,
        "pruned": found.pruned,
        "centralized": found.centralized,
    }
    odd = {
        name: "NaN" if math.isnan(value) else "infinite"
        for name, value in whole.items()
        if value is not None and not math.isfinite(value)
    }
    figures = {name: _finite(value) for name, value in whole.items()}
    return {**figures, "local_only": local, **({"no_number": odd} if odd else {})}


def spread(values: Iterable[float | None]) -> dict[str, float | None]:
    """Return mean, best and worst of perplexities; None stands for that of a destroyed model.

    One destroyed model is the worst, and leaves no mean; the best is that of the others.
    """
    found = list(values)
    known = [value for value in found if value is not None]
    whole = len(known) == len(found)
    return {
        "mean": fmean(known) if whole and known else None,
        "best": min(known, default=None),
        "worst": max(known) if whole and known else None,
    }


def _finite(value: float | None) -> float | None:
    """Return the value, None where JSON has no number for it: a destroyed model's perplexity."""
    return value if value is not None and math.isfinite(value) else None


def _agreement(
    config: RunConfig, linears: Sequence[LinearFigures], clients: ClientAgreement | None
) -> dict[str, object] | None:
    """Return how far clients' masks agree; None where they send no masks."""
    voted = [linear for linear in linears if linear.votes]
    if not voted:
        return None
    # By the votes that there were, not by who voted: of as many clients, those of one block can
    # weigh more than those of another, and only equal totals can be counted together.
    votes: dict[str, list[int]] = {}
    for linear in voted:
        found = votes.setdefault(str(len(linear.votes) - 1), [0] * len(linear.votes))
        found[:] = map(operator.add, found, linear.votes)
    return {
        "pairwise": _mean([(linear.agreement, linear.weights) for linear in voted]),
        "unanimous": _mean([(linear.unanimous, linear.weights) for linear in voted]),
        "votes_by_voters": votes,
        "tied": _tied(config, voted),
        "linears": {linear.name: linear.agreement for linear in voted},
        "clients": None if clients is None else _client_agreement(clients),
    }


def _tied(config: RunConfig, linears: Sequence[LinearFigures]) -> dict[str, int] | None:
    """Return the tied weights where votes alone decide, and over each whole matrix."""
    options = config.strategy.own_options()
    whole = options.get("group", "layer") == "layer" and not config.pruner.pattern.structured
    if not whole or options.get("decode"):
        return None
    tied, pruned = (sum(counts) for counts in zip(*(one.tied for one in linears), strict=True))
    return {"weights": tied, "pruned": pruned}


def _client_agreement(found: ClientAgreement) -> dict[str, object]:
    """Return the shares, rounded to what a sample can tell."""
    rows = [[share if share is None else round(share, 5) for share in row] for row in found.matrix]
    return {
        "weights": found.weights,
        "result": {name: round(share, 5) for name, share in found.result.items()},
        "matrix_clients": list(found.clients),
        "matrix": rows,
    }


def _mean(values: Sequence[tuple[float | None, int]]) -> float:
    """Return the mean of shares, weighted by the entries that they are of."""
    total = sum(weights for _, weights in values)
    return sum((share or 0.0) * weights for share, weights in values) / total


def _method(config: RunConfig) -> dict[str, object]:
    """Return the choices that name the method, strategy by strategy."""
    strategy = config.strategy
    found: dict[str, object] = {
        "strategy": strategy.name,
        "schedule": config.schedule.name,
        "prefix": config.schedule.prefix,
        "pruner": config.pruner.name,
        "pattern": str(config.pruner.pattern),
        "group": config.pruner.group,
        "targets": config.pruner.targets,
        "ignore": config.pruner.ignore,
        "allocation": config.allocation.name,
        "fraction": strategy.fraction,
    }
    for key, value in strategy.own_options().items():
        found["strategy_group" if key == "group" else key] = value
    return found
