"""Compare which experts of a mixture go: rankings, poolings, and experts drawn by lot.

Run it from the repository root, on a mixture of experts and texts in folders, one for each domain::

    python scripts/compare_experts.py /models/domains-moe /texts
    python scripts/compare_experts.py /models/domains-moe /texts --sparsity 0.25 0.5 --draws 3

Every folder below the second argument that holds ``train.txt`` and ``test.txt`` is a domain and a
client: it calibrates on the first, and every model is measured on the second of each. Printed are
the perplexity of each domain, its geometric mean, the largest multiple of the dense model's, bytes
of the exported files, and tokens a second beside the dense model, taken in turns.

It ends with the check that the same experts go for 1, 3 and 16 clients.
"""

import argparse
import json
import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.config import config_from_overrides
from fedprune.evaluation.perplexity import perplexities
from fedprune.evaluation.throughput import compare_throughput
from fedprune.methods.fedexperts.ranking import (
    RANKINGS,
    drop_fairly,
    drop_lowest,
    expert_scores,
    grouped,
    mean_scores,
    need_shares,
    score_shares,
)
from fedprune.models.loading import LoadedModel, load_model
from fedprune.models.mixture import Mixture, find_mixture, without_experts
from fedprune.models.reshape import export_reshaped
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.experts import ExpertSums

KIND = ExpertSums()
Sums = dict[int, dict[str, Any]]
Dropped = dict[int, list[int]]


def main() -> None:
    """Measure every choice and print a line of each."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    model = load(arguments.model)
    mixture = find_mixture(model)
    domains = sorted(path.parent for path in arguments.texts.glob("*/train.txt"))
    texts = {path.name: tokens(model, path / "train.txt") for path in domains}
    held_out = {path.name: tokens(model, path / "test.txt") for path in domains}
    samples = {name: cut(text, arguments.samples, arguments) for name, text in texts.items()}
    windows = {
        name: torch.stack(cut(text, arguments.windows, arguments))
        for name, text in held_out.items()
    }
    clients = {name: sums_of(model, own) for name, own in samples.items()}
    dense = measured(model, windows)
    print(line("dense", dense, dense))
    for sparsity in arguments.sparsity:
        drop = int(mixture.count * sparsity)
        for name, dropped in choices(list(clients.values()), mixture, drop, arguments.draws):
            show(f"{sparsity:g} {name}", model, mixture, dropped, windows, dense, arguments)
    check_splits(model, [one for own in samples.values() for one in own], mixture)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--samples", type=int, default=4, help="of a client")
    parser.add_argument("--windows", type=int, default=8, help="of a domain's held-out text")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--draws", type=int, default=3, help="choices by lot")
    parser.add_argument("--speed", action="store_true", help="measure tokens a second too")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def load(folder: Path) -> LoadedModel:
    """Return a model as a run loads it."""
    return load_model(config_from_overrides([f"model={folder}"]).model)


def tokens(model: LoadedModel, path: Path) -> Tensor:
    """Return the first tokens of a text: enough for all samples, and no more."""
    text = path.read_text(encoding="utf-8")[:60_000]
    return torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def cut(text: Tensor, count: int, arguments: argparse.Namespace) -> list[Tensor]:
    """Return sequences that are spread evenly over a text."""
    starts = np.linspace(0, len(text) - arguments.seq_len, count).astype(int)
    return [text[start : start + arguments.seq_len] for start in starts]


def sums_of(model: LoadedModel, samples: Sequence[Tensor]) -> Sums:
    """Return block -> what a client would send of it."""
    walk, found = BlockWalk(model, samples), Sums()
    for block in walk.dense_blocks():
        arrays = walk.observe((), [KIND]).block[KIND.name]
        if arrays:
            found[block] = arrays
    return found


def added(clients: Sequence[Sums]) -> Sums:
    """Return the sums of all clients."""
    total = {block: dict(arrays) for block, arrays in clients[0].items()}
    for client in clients[1:]:
        total = {block: KIND.add(arrays, client[block]) for block, arrays in total.items()}
    return total


def choices(
    clients: Sequence[Sums], mixture: Mixture, drop: int, draws: int
) -> Iterator[tuple[str, Dropped]]:
    """Yield what goes by each ranking of the sums of all, by each pooling, and by lot."""
    groups, total = grouped(mixture.count, mixture.groups), added(clients)
    for ranking in RANKINGS:
        yield (
            ranking,
            {b: drop_lowest(expert_scores(s, ranking), groups, drop) for b, s in total.items()},
        )
    for pooling, scores in (("clients", mean_scores), ("scaled", score_shares)):
        rows = {b: sum(scores(client[b], "reap") for client in clients) for b in total}
        yield (
            f"reap, {pooling}",
            {b: drop_lowest(row.tolist(), groups, drop) for b, row in rows.items()},
        )
    needs = {b: np.stack([need_shares(client[b], "reap") for client in clients]) for b in total}
    yield (
        "reap, worst_client",
        {b: drop_fairly(rows, groups, drop).dropped for b, rows in needs.items()},
    )
    for seed in range(draws):
        draw = random.Random(seed)
        order = {b: draw.sample(range(mixture.count), mixture.count) for b in total}
        yield f"by lot, {seed}", {b: drop_lowest(one, groups, drop) for b, one in order.items()}


def show(  # noqa: PLR0913 - what a line is made of
    name: str,
    model: LoadedModel,
    mixture: Mixture,
    dropped: Dropped,
    windows: Mapping[str, Tensor],
    dense: Mapping[str, float],
    arguments: argparse.Namespace,
) -> None:
    """Export a model without some experts, measure what was written, and print a line."""
    keep = {
        block: tuple(expert for expert in range(mixture.count) if expert not in gone)
        for block, gone in dropped.items()
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        export_reshaped(model, {}, without_experts(model, keep), folder)
        size = (folder / "model.safetensors").stat().st_size
        print(line(name, measured(load(folder), windows), dense), f"{size / 1e6:.1f} MB", end=" ")
        if arguments.speed and name.endswith(" reap"):
            _, own = compare_throughput((arguments.model, folder), "cpu", arguments.seq_len)
            print(f"reads {own.prompt_ratio:.2f}x, writes {own.generation_ratio:.2f}x", end=" ")
    print(json.dumps(dropped), flush=True)


def measured(model: LoadedModel, windows: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the perplexity of each domain."""
    return {name: one.perplexity for name, one in perplexities(model, windows).items()}


def line(name: str, found: Mapping[str, float], dense: Mapping[str, float]) -> str:
    """Return a row of a table: each domain, the geometric mean, the worst rise."""
    mean = math.exp(sum(map(math.log, found.values())) / len(found))
    worst = max(found, key=lambda domain: found[domain] / dense[domain])
    rise = found[worst] / dense[worst]
    figures = [*(f"{value:.1f}" for value in found.values()), f"{mean:.1f}", f"{rise:.2f}x {worst}"]
    return f"| {name} | {' | '.join(figures)} |"


def check_splits(model: LoadedModel, samples: Sequence[Tensor], mixture: Mixture) -> None:
    """Say whether 1, 3 and 16 clients with the same samples drop the same experts."""
    groups, found = grouped(mixture.count, mixture.groups), {}
    whole = sums_of(model, samples)
    for clients in (1, 3, 16):
        parts = [sums_of(model, samples[first::clients]) for first in range(clients)]
        total = added(parts)
        same = all(np.array_equal(total[b][n], whole[b][n]) for b in whole for n in whole[b])
        lists = [drop_lowest(expert_scores(total[b], "reap"), groups, 2) for b in total]
        found[clients] = (same, lists)
    equal = all(same for same, _ in found.values()) and len({str(one) for _, one in found.values()})
    print("1, 3 and 16 clients: sums equal to the last bit, same experts:", equal == 1)


if __name__ == "__main__":
    main()
