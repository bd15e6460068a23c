"""Measure what a guarantee for every sample costs: perplexity by epsilon and number of samples.

Run it from the repository root, with a model of scripts/train_domain_model.py and its texts::

    python scripts/measure_noise.py /models/domains-llama /texts --samples 100 1000 10000

All samples pass the dense model once; as sums add up, those of the first 100, 1,000 and 10,000 are
what federations with so many samples would send. Noise, estimate and pruning are the package's own
(`strategy=fedstats schedule.prefix=dense privacy.epsilon=...`). The table is in Markdown.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.config import RunConfig, config_from_overrides
from fedprune.evaluation.perplexity import perplexities
from fedprune.methods.exchange import BlockAggregator, BlockTask
from fedprune.methods.noisy import NoisyExchange, NoisySums, Plan
from fedprune.methods.public_model import PublicModel
from fedprune.methods.public_text import PublicText
from fedprune.methods.registry import main_exchange
from fedprune.models.device import Limits
from fedprune.models.loading import LoadedModel, load_model
from fedprune.privacy.noise import clipped, discrete_gaussian, part_norm, unit
from fedprune.pruning.block_kinds import BlockSite
from fedprune.pruning.blocks import BlockWalk, input_groups
from fedprune.pruning.statistics import StatisticKind, get_kind, shared_inputs

Totals = list[dict[tuple[str, ...], np.ndarray]]
"""Block -> input -> sums of clipped samples, in units."""

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
    model = public_model(config, loaded)
    texts = sorted(arguments.texts.glob("*/train.txt"))
    samples = drawn(loaded, texts, max(arguments.samples), arguments.seq_len, arguments.seed)
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
            *(f"model={arguments.model}", "strategy=fedstats", "schedule.prefix=dense"),
            *("evaluation.local_only=false", f"pruner.seq_len={arguments.seq_len}"),
            *(f"sparsity={arguments.sparsity}", f"privacy.clip={arguments.clip}"),
            *(f"privacy.epsilon={epsilon}", f"seed={arguments.seed}"),
        ]
    )


def public_model(config: RunConfig, loaded: LoadedModel) -> PublicModel:
    """Return what the server knows of the model, public text included."""
    blocks = range(len(loaded.layout.blocks))
    return PublicModel(
        tuple(loaded.layout.shapes()),
        *("", "", ""),
        loaded.weight,
        input_groups(loaded),
        sites=tuple(BlockSite.of(loaded, block) for block in blocks),
        public=PublicText.of(config, loaded, get_kind("columns")),
    )


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


class _Rows:
    """What each sample adds to an input, in the order of samples."""

    tokens = 0

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, inputs: Tensor) -> None:
        self.parts.append(inputs.detach().float().square().sum(1))

    def close(self) -> "_Rows":
        return self


class _RowsKind(StatisticKind[Any]):
    name = "rows"

    def start(self, width: int) -> _Rows:
        return _Rows()

    def arrays(self, statistic: Any) -> Any:
        raise RuntimeError("rows stay here.")

    read = add = arrays  # type: ignore[assignment]


def totals(
    loaded: LoadedModel,
    model: PublicModel,
    exchange: NoisyExchange,
    samples: Sequence[Tensor],
    counts: Sequence[int],
) -> dict[int, Totals]:
    """Return number of samples -> the sums of the first so many, clipped as clients clip them."""
    plan, found = Plan.of(model), {count: Totals() for count in counts}
    walk = BlockWalk(loaded, samples, limits=Limits(_BATCH))
    while walk.blocks_left:
        block = walk.position
        here = {count: dict[tuple[str, ...], np.ndarray]() for count in counts}
        for linears, rows in shared_inputs(walk.observe([_RowsKind()]).linears["rows"]):
            if linears not in plan.sent(block):
                continue
            assert isinstance(rows, _Rows)
            vectors = torch.cat(rows.parts).double().numpy()
            vectors = np.column_stack([vectors, np.full(len(vectors), len(samples[0]))])
            units = unit(plan.total, exchange.config.privacy.clip)
            scale = exchange.scale(model, block, linears).astype(np.float64) / units
            norm = part_norm(plan.columns(block, linears), plan.total)
            total = np.zeros(vectors.shape[1], dtype=np.int64)
            for number, vector in enumerate(vectors, start=1):
                total += clipped(vector / scale, norm)
                if number in here:
                    here[number][linears] = total.copy()
        for count in counts:
            found[count].append(here[count])
        if walk.blocks_left == 1:
            return found
        walk.advance({})
    return found


def scored(  # noqa: PLR0913 - a cell of the table
    arguments: argparse.Namespace,
    loaded: LoadedModel,
    model: PublicModel,
    sums: Mapping[int, Mapping[tuple[str, ...], np.ndarray]],
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
                f"{linears[0]}.noisy": discrete_gaussian(len(total), one.width)
                if epsilon
                else np.zeros(len(total), dtype=np.int64)
                for linears, total in arrays.items()
            }
            one.add(noisy, None)  # type: ignore[arg-type]
        clear = {f"{linears[0]}.noisy": total for linears, total in arrays.items()}
        one.add(clear, None)  # type: ignore[arg-type]
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
