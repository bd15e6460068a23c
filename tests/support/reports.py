"""Results of made-up runs, in the form in which real ones are written."""

import random
from collections.abc import Sequence

from fedprune.config import config_from_overrides
from fedprune.methods.registry import get_method
from fedprune.models.fingerprint import Fingerprint
from fedprune.results.build import (
    ClientAgreement,
    Facts,
    Fidelity,
    LinearFigures,
    Perplexities,
    build_results,
)
from fedprune.results.ledger import Entry, Ledger

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SIZE = 100_000


def made_up(
    names: Sequence[str],
    blocks: int = 2,
    *overrides: str,
    datasets: Sequence[str] = ("text",),
    alone: bool = True,
    lost: Sequence[str] = (),
) -> dict:
    """Return results as `results.json` has them.

    `blocks`: of the model; the first ten have a round each.
    """
    draw = random.Random(len(names))
    config = config_from_overrides(list(overrides))
    linears = [_linear(draw, block, kind, len(names)) for block in range(blocks) for kind in KINDS]
    ledger = _ledger(draw, names, min(blocks, 10), lost)
    seconds = {"load": 1.5, "handshake": 3.0, "prune": 200.0, "evaluate": 0.04, "total": 4000.0}
    method = get_method(config.strategy.name)
    facts = Facts(
        config,
        method.words,
        7,
        Fingerprint("c", "w" * 64, "5"),
        "s",
        seconds,
        {},
        4 * _SIZE * 7 * blocks,
    )
    close = {"pruned": Fidelity(0.125, 0.75), "centralized": Fidelity(0.1, 0.8)}
    measured = [
        Perplexities(name, 10.0, 12.5, 12.0, {n: 13 + draw.random() for n in names if alone}, close)
        for name in datasets
    ]
    return build_results(facts, linears, measured, _clients(names), ledger, _shares(draw, names))


def _linear(draw: random.Random, block: int, kind: str, voters: int) -> LinearFigures:
    votes = [draw.randrange(1000) for _ in range(voters + 1)]
    zeros = _SIZE // 2 + 10 * block
    name = f"model.layers.{block}.{kind}"
    return LinearFigures(name, _SIZE, zeros, voters, votes, 0.9 + draw.random() / 10, 0.8, (9, 4))


def _ledger(draw: random.Random, names: Sequence[str], rounds: int, lost: Sequence[str]) -> Ledger:
    ledger = Ledger([Entry(0, "handshake", name, 1500, 1700, 0.5) for name in names])
    for step in range(1, rounds + 1):
        for name in names:
            if name not in lost:
                entry = Entry(step, "prune", name, 1000, 90_000, 1 + draw.random())
                ledger.add(entry.worked(0.5, 0, 0))
            elif step == 1:
                ledger.add(Entry(step, "prune", name, 1000, 80, 1.0, refused="block 0: too short"))
    return ledger


def _clients(names: Sequence[str]) -> list[dict[str, object]]:
    return [
        {"name": name, "partition_id": place, "samples": 32, "tokens": 4096}
        for place, name in enumerate(names)
    ]


def _shares(draw: random.Random, names: Sequence[str]) -> ClientAgreement:
    shown = names[:64]
    matrix = [[0.9 + draw.random() / 10 for _ in shown] for _ in shown]
    return ClientAgreement(65536, {n: 0.9 + draw.random() / 10 for n in names}, shown, matrix)
