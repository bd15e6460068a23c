"""Measure what a guarantee for every sample costs, by epsilon and number of samples.

Run it from the repository root, with a model of scripts/train_domain_model.py and its texts::

    python scripts/measure_noise.py /models/domains-llama /texts --samples 100 1000 10000
    python scripts/measure_noise.py /models/domains-moe /texts --strategy fedexperts --sparsity 0.5
    python scripts/measure_noise.py /models/domains-llama /texts --strategy depth --sparsity 0.34

All samples pass the dense model once; as sums add up, those of the first 100, 1,000 and 10,000 are
what federations with so many samples would send. Noise, estimate and what is made of it are the
package's own. Of FedStats the table, in Markdown, has perplexities; of expert and depth pruning how
many of the experts or blocks that the same samples without noise would keep go instead.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.audit import Rows, RowsKind
from fedprune.config import RunConfig, config_from_overrides, to_yaml
from fedprune.evaluation.perplexity import perplexities
from fedprune.methods.exchange import BlockAggregator, BlockTask, Contributor
from fedprune.methods.limited import Plan, Share, Shortener, shortened
from fedprune.methods.noisy import NoisyExchange, NoisySums
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import PublicText
from fedprune.methods.registry import get_method, main_exchange
from fedprune.methods.statistics_folder import (
    Manifest,
    StatisticsFolder,
    write_block,
    write_manifest,
)
from fedprune.models.device import Limits
from fedprune.models.fingerprint import fingerprint
from fedprune.models.loading import LoadedModel, load_model
from fedprune.privacy.noise import discrete_gaussian
from fedprune.pruning.blocks import BlockWalk, input_groups
from fedprune.pruning.statistics import shared_inputs

Totals = list[dict[str, np.ndarray]]
"""Block -> key of the share -> sums of shortened samples, in units."""

STRATEGIES = {
    "fedstats": ("strategy=fedstats", "schedule.prefix=dense"),
    "fedexperts": ("strategy=fedexperts",),
    "depth": ("strategy=depth", "strategy.repair=false"),
}

_READ = 600_000  # characters of each domain
_BATCH = 50


def main() -> None:
    """Print the table."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    config = config_of(arguments, arguments.epsilon[0])
    loaded = load_model(config.model)
    exchange = main_exchange(config)
    assert isinstance(exchange, NoisyExchange)
    model = public_model(config, loaded, exchange)
    texts = sorted(arguments.texts.glob("*/train.txt"))
    samples = drawn(loaded, texts, max(arguments.samples), arguments.seq_len, arguments.seed)
    if not exchange.prunes:
        print_choices(arguments, loaded, model, exchange, samples)
        return
    sums = totals(loaded, model, exchange, samples, arguments.samples)
    held = {
        path.parent.name: windows(loaded, path, arguments.windows)
        for path in sorted(arguments.texts.glob("*/test.txt"))
    }
    print(f"dense {measured(loaded, held, {}):.2f}; ", end="")
    nothing = {
        block: {one: np.full_like(array, 1000) for one, array in arrays.items()}
        for block, arrays in enumerate(sums[arguments.samples[0]])
    }
    print(f"public text alone {scored(arguments, loaded, model, nothing, held, None):.2f}\n")
    print(f"| samples | no noise | {' | '.join(f'epsilon {e:g}' for e in arguments.epsilon)} |")
    print(f"|{'---|' * (len(arguments.epsilon) + 2)}", flush=True)
    for count in arguments.samples:
        row = [f"{scored(arguments, loaded, model, dict(enumerate(sums[count])), held, 0):.2f}"]
        for epsilon in arguments.epsilon:
            clients = arguments.local
            found = [
                scored(arguments, loaded, model, dict(enumerate(sums[count])), held, epsilon)
                for _ in range(arguments.repeats)
            ]
            noise = main_exchange(config_of(arguments, epsilon))
            assert isinstance(noise, NoisyExchange)
            share = noise.relative_noise(model, count, clients)
            row.append(f"{np.mean(found):.2f} ({share:.0%})")
        print(f"| {count:,} | {' | '.join(row)} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, help="a folder of domains with train.txt and test.txt")
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 300, 1000, 3000, 10_000])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0, 8.0, 20.0])
    parser.add_argument("--strategy", choices=STRATEGIES, default="fedstats")
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--clip", type=float, default=1.5)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--windows", type=int, default=8, help="of 128 tokens of each domain")
    parser.add_argument("--local", type=int, default=1, help="clients that each add whole noise")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def config_of(arguments: argparse.Namespace, epsilon: float) -> RunConfig:
    """Return the configuration of a run with this epsilon."""
    return config_from_overrides(
        [
            *(f"model={arguments.model}", *STRATEGIES[arguments.strategy]),
            *("evaluation.local_only=false", f"pruner.seq_len={arguments.seq_len}"),
            *(f"sparsity={arguments.sparsity}", f"privacy.clip={arguments.clip}"),
            *(f"privacy.epsilon={epsilon}", f"seed={arguments.seed}"),
        ]
    )


def public_model(config: RunConfig, loaded: LoadedModel, exchange: NoisyExchange) -> PublicModel:
    """Return what the server knows of the model, public text included."""
    public = PublicText.of(config, loaded, exchange.summed)
    inputs = input_groups(loaded) if exchange.shares_inputs else ()
    return PublicModel.of(loaded, inputs=inputs, public=public)


class Snapshots(Shortener):
    """Adds up what samples add to a block's own statistics, and keeps the sums of the first."""

    def __init__(
        self, plan: Plan, block: int, scales: dict[str, Any], clip: float, counts: Sequence[int]
    ) -> None:
        super().__init__(plan, block, scales, clip)
        self.found: dict[int, dict[str, np.ndarray]] = {count: {} for count in counts}
        self._totals = {share.key: np.zeros(share.count, np.int64) for share in self.shares}
        self._seen = dict.fromkeys(self._totals, 0)

    def __call__(self, share: Share, numbers: Any) -> Any:
        """Return what a sample adds, and note it."""
        added = super().__call__(share, numbers)
        self._totals[share.key] += added
        self._seen[share.key] += 1
        if self._seen[share.key] in self.found:
            self.found[self._seen[share.key]][share.key] = self._totals[share.key].copy()
        return added


def print_choices(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    model: PublicModel,
    exchange: NoisyExchange,
    samples: Sequence[Tensor],
) -> None:
    """Print how many of the experts or blocks that are kept without noise go with it."""
    plan, walk, kept = Plan.of(exchange.summed, model), BlockWalk(loaded, samples), {}
    sums: dict[int, list[dict[str, np.ndarray]]] = {count: [] for count in arguments.samples}
    for block in walk.dense_blocks():
        scales = {share.key: exchange.scale(model, block, share) for share in plan.shares[block]}
        clip = exchange.config.privacy.clip
        shorten = Snapshots(plan, block, scales, clip, arguments.samples)
        walk.observe((), shorten.kinds()[1], kept)
        for count, found in shorten.found.items():
            sums[count].append(found)
    last = chosen(arguments, loaded, model, sums[max(arguments.samples)], None)
    print(f"| samples | {' | '.join(f'epsilon {e:g}' for e in arguments.epsilon)} | no noise* |")
    print(f"|{'---|' * (len(arguments.epsilon) + 2)}", flush=True)
    for count in arguments.samples:
        clear, row = chosen(arguments, loaded, model, sums[count], None), []
        for epsilon in arguments.epsilon:
            changed = [
                len(clear - chosen(arguments, loaded, model, sums[count], epsilon))
                for _ in range(arguments.repeats)
            ]
            noise = main_exchange(config_of(arguments, epsilon))
            assert isinstance(noise, NoisyExchange)
            share = noise.relative_noise(model, count, arguments.local)
            row.append(f"{np.mean(changed):.1f} ({share:.0%})")
        row.append(f"{len(last - clear)}")
        print(f"| {count:,} | {' | '.join(row)} |", flush=True)
    print(f"\n{len(last)} kept. * by these samples in place of all {max(arguments.samples):,}.")


def chosen(
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    model: PublicModel,
    sums: Sequence[dict[str, np.ndarray]],
    epsilon: float | None,
) -> set[tuple[int, int]]:
    """Return the experts (block, expert) or blocks (block, 0) that remain; None: no noise."""
    config = config_of(arguments, epsilon or 100.0)
    exchange, tokens = main_exchange(config), max(arguments.samples) * arguments.seq_len
    with TemporaryDirectory() as folder:
        for block, found in enumerate(sums):
            one = exchange.aggregator(BlockTask(model, block))
            assert isinstance(one, NoisySums)
            noisy = {key: total.copy() for key, total in found.items()}
            if epsilon is None:
                one.width = 0.0
            else:
                for total in noisy.values():
                    total += discrete_gaussian(len(total), one.width)
            one.add(noisy, Contributor("all", 1, tokens))
            write_block(Path(folder), block, one.close().arrays)
        told = Manifest(
            fingerprint(loaded),
            *("", "", to_yaml(config)),
            *((), (), exchange.collects, model.inputs, model.shapes, ()),
        )
        write_manifest(Path(folder), told)
        method = get_method(config.strategy.name)
        figures = method.solve(config, loaded, StatisticsFolder.open(folder)).figures
    blocks = range(model.num_blocks)
    if "removed_blocks" in figures:
        gone = figures["removed_blocks"]["blocks"]
        return {(block, 0) for block in blocks if block not in gone}
    experts, every = figures["experts"], set[tuple[int, int]]()
    for one in experts["blocks"]:
        kept = set(range(experts["count"])) - set(one["dropped"])
        every |= {(one["block"], expert) for expert in kept}
    return every


def drawn(
    loaded: LoadedModel, texts: Sequence[Path], count: int, seq_len: int, seed: int
) -> list[Tensor]:
    """Return samples of all domains in turn, in an order that the seed draws."""
    rows = []
    for path in texts:
        text = path.read_text(encoding="utf-8")[:_READ]
        tokens = torch.tensor(loaded.tokenizer.encode(text, verbose=False))
        rows.append(tokens[: len(tokens) // seq_len * seq_len].reshape(-1, seq_len))
    every = torch.cat([one[: -(-count // len(rows))] for one in rows])
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    return list(every[order][:count])


def windows(loaded: LoadedModel, path: Path, count: int) -> Tensor:
    """Return held-out windows of 128 tokens."""
    tokens = loaded.tokenizer.encode(path.read_text(encoding="utf-8")[:_READ], verbose=False)
    return torch.tensor(tokens[: count * 128]).reshape(count, 128)


def totals(
    loaded: LoadedModel,
    model: PublicModel,
    exchange: NoisyExchange,
    samples: Sequence[Tensor],
    counts: Sequence[int],
) -> dict[int, Totals]:
    """Return number of samples -> the sums of the first so many, clipped as clients clip them."""
    plan, found = Plan.of(exchange.summed, model), {count: Totals() for count in counts}
    walk = BlockWalk(loaded, samples, limits=Limits(_BATCH))
    for block in walk.dense_blocks():
        here = {count: dict[str, np.ndarray]() for count in counts}
        shares = {share.linears: share for share in plan.shares[block]}
        for linears, rows in shared_inputs(walk.observe([RowsKind()]).linears["rows"]):
            if linears not in shares:
                continue
            share = shares[linears]
            assert isinstance(rows, Rows)
            vectors = rows.found.astype(np.float64)
            vectors = np.column_stack([vectors, np.full(len(vectors), len(samples[0]))])
            scale, clip = exchange.scale(model, block, share), exchange.config.privacy.clip
            total = np.zeros(vectors.shape[1], dtype=np.int64)
            for number, vector in enumerate(vectors, start=1):
                total += shortened(vector, scale, plan, share, clip)
                if number in here:
                    here[number][share.key] = total.copy()
        for count in counts:
            found[count].append(here[count])
    return found


def scored(  # noqa: PLR0913 - a cell of the table
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    model: PublicModel,
    sums: Mapping[int, Mapping[str, np.ndarray]],
    held: Mapping[str, Tensor],
    epsilon: float | None,
) -> float:
    """Return the perplexity of the model that sums come to; 0: no noise, None: sums of nothing."""
    exchange = main_exchange(config_of(arguments, epsilon or 100.0))
    assert isinstance(exchange, NoisyExchange)
    changes = {}
    for block, arrays in sums.items():
        one = exchange.aggregator(BlockTask(model, block))
        assert isinstance(one, NoisySums) and isinstance(one, BlockAggregator)
        for _ in range(arguments.local if epsilon else 1):
            noisy = {
                key: discrete_gaussian(len(total), one.width)
                if epsilon
                else np.zeros(len(total), dtype=np.int64)
                for key, total in arrays.items()
            }
            one.add(noisy, Contributor("noise"))
        one.add(dict(arrays), Contributor("sums"))
        one.clients -= 1
        if not epsilon:
            one.width = 0.0
        changes[block] = one.close().changes
    return measured(loaded, held, changes)


def measured(loaded: LoadedModel, held: Mapping[str, Tensor], changes: Any) -> float:
    """Return the geometric mean over domains of the perplexity."""
    found = perplexities(loaded, held, changes=changes, limits=Limits(8))
    return float(np.exp(np.mean([one.nll for one in found.values()])))


if __name__ == "__main__":
    main()
