"""Measure what the majority floor of votes costs, and what it saves from voters who collude.

Run it from the repository root, with a model of scripts/train_domain_model.py and its texts::

    python scripts/measure_collusion.py /models/domains-llama /texts

Clients with a domain each, or with all of them, prune with Wanda and vote. Colluders, the last of
them, all send what the last one would, but for the hundredth of each row that Wanda would keep
first: they prune it in place of what they would prune last. Nothing in the form of their masks
shows it. "Aimed at and gone" is the share that is pruned of the weights that they are after and all
honest clients keep. Perplexities are of the held-out texts of all domains; the table is Markdown.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fedprune
from fedprune.config import config_from_overrides
from fedprune.config.pattern import pruned_count
from fedprune.evaluation.perplexity import Perplexity
from fedprune.models.changes import Changes
from fedprune.models.loading import LoadedModel, load_model
from fedprune.pruning.groups import MaskSpec
from fedprune.pruning.pruner import input_norms
from fedprune.pruning.statistics import Statistic
from fedprune.pruning.wanda import WandaPruner
from fedprune.wire.changes import Change, mask_of
from fedprune.wire.masks import BitMask

_READ = 60_000  # characters of each domain that are held out
_BEST = 0.01  # of a row: what colluders are after


class ColludingPruner:
    """Prunes as Wanda does, so that what it measures is right, and notes the mask that it sends."""

    name, needs, updates = "colluding", "columns", False

    def __init__(self) -> None:
        self.masks: list[BitMask] = []

    def prune(self, weight: Tensor, stats: Statistic | None, spec: MaskSpec) -> Change:
        """Return Wanda's mask."""
        scores = weight.float().abs() * input_norms(self.name, weight, stats)
        order = scores.argsort(dim=1, stable=True).numpy()
        keeps = np.ones(order.shape, dtype=np.bool_)
        count = pruned_count(order.shape[1], spec.sparsity)
        best = math.ceil(order.shape[1] * _BEST)
        forged = np.concatenate([order[:, : count - best], order[:, order.shape[1] - best :]], 1)
        np.put_along_axis(keeps, forged, False, axis=1)
        self.masks.append(BitMask.from_bool(keeps))
        return WandaPruner().prune(weight, stats, spec)


def main() -> None:
    """Print the table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    loaded = load_model(config_from_overrides([f"model={arguments.model}"]).model)
    held = {
        path.parent.name: path.read_text("utf-8")[:_READ]
        for path in sorted(arguments.texts.glob("*/test.txt"))
    }
    dense = measured(loaded, held, arguments.windows, {})
    print(f"dense {mean(dense):.2f}\n")
    print("| sparsity | colluding | floor | aimed at and gone | perplexity | worst, times dense |")
    print("|---|---|---|---|---|---|", flush=True)
    for sparsity in arguments.sparsity:
        honest, forged = answers(loaded, arguments, sparsity)
        for colluding in arguments.colluding:
            own = honest[: len(honest) - colluding]
            told = [*own, *[forged] * colluding]
            for floor in ("false", "true"):
                rule = [f"strategy.majority_floor={floor}"]
                masks = fedprune.aggregate(told, model=loaded, sparsity=sparsity, overrides=rule)
                lost = f"{share_lost(own, forged, masks):.1%}" if colluding else ""
                found = measured(loaded, held, arguments.windows, masks)
                worst = max(found[name] / dense[name] for name in held)
                row = f"| {sparsity:g} | {colluding} of {len(honest)} | {floor} | {lost} | "
                print(f"{row}{mean(found):.2f} | {worst:.2f} |", flush=True)


def share_lost(honest: Sequence[Changes], forged: Changes, masks: Changes) -> float:
    """Return how much goes of what colluders are after and every honest client keeps."""
    aimed = lost = 0
    for block, named in forged.items():
        for name, mask in named.items():
            kept = [mask_of(one[block][name]).to_bool() for one in honest]
            targets = np.logical_and.reduce(kept) & ~mask_of(mask).to_bool()
            aimed += np.count_nonzero(targets)
            lost += np.count_nonzero(targets & ~mask_of(masks[block][name]).to_bool())
    return lost / aimed


def answers(
    loaded: LoadedModel, arguments: argparse.Namespace, sparsity: float
) -> tuple[list[Changes], Changes]:
    """Return what every client would send as an honest one, and what all colluders send."""
    honest: list[Changes] = []
    pruner = ColludingPruner()
    paths = sorted(arguments.texts.glob("*/train.txt"))
    for number in range(len(paths)):
        own = paths if arguments.alike else paths[number : number + 1]
        draw = np.random.default_rng([arguments.seed, number])
        tokens = [one for path in own for one in samples(loaded, path, arguments, draw)]
        pruner.masks.clear()
        honest.append(fedprune.prune_locally(loaded, tokens, sparsity=sparsity, pruner=pruner))
    sent = iter(pruner.masks)
    return honest, {b: {name: next(sent) for name in named} for b, named in honest[-1].items()}


def samples(
    loaded: LoadedModel, path: Path, arguments: argparse.Namespace, draw: np.random.Generator
) -> Iterator[list[int]]:
    """Yield samples of a text, from places that are drawn."""
    length = arguments.seq_len
    with path.open(encoding="utf-8") as file:
        tokens = loaded.tokenizer(file.read(10 * _READ))["input_ids"]
    for start in draw.integers(0, len(tokens) - length, arguments.samples):
        yield tokens[start : start + length]


def measured(
    loaded: LoadedModel, held: Mapping[str, str], windows: int, masks: Changes
) -> dict[str, float]:
    """Return the perplexity of each domain's held-out text."""
    found: dict[str, float] = {}
    for name, text in held.items():
        cut = loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"][: windows * 257])
        one: Perplexity = fedprune.evaluate(loaded, cut, masks, seq_len=256)
        found[name] = one.perplexity
    return found


def mean(found: Mapping[str, float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, found.values())) / len(found))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, help="a folder of domains with train.txt and test.txt")
    parser.add_argument("--alike", action="store_true", help="every client has all domains")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--colluding", type=int, nargs="+", default=[0, 2, 3])
    parser.add_argument("--samples", type=int, default=2, help="of a client")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8, help="of 256 tokens of each domain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
