"""Compare what makes a model smaller: bytes, tokens a second, and what is lost, side by side.

Run it from the repository root, on a model and texts in folders, one for each domain::

    python scripts/compare_smaller.py /models/domains-llama /texts results --seeds 0 1 2 --speed

Every folder below the second argument that holds ``train.txt`` and ``test.txt`` is a domain and a
client: it calibrates on the first, and every model is measured on the second of each. The models
stay in the third argument; what is there already is not made again. Each is made by one or two
`fedprune` commands, which are printed.

Printed is a table, a model a row, all beside the dense model in bfloat16: bytes of its weights,
perplexity (geometric mean and worst domain), agreement, tokens a second in turns with the dense
model, and what a client sent, the mean over the seeds and the largest distance from it.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedprune.evaluation.throughput import compare_throughput

COLLECTIONS = {"columns": "columns", "moments": "'columns,moments'"}
"""Name -> what is collected; the first is enough for Wanda and for rounding."""

_AT_ONCE = 4  # models in memory beside the dense one while tokens a second are measured


@dataclass(frozen=True)
class Recipe:
    """How a row of the table is made."""

    name: str
    label: str  # what the table calls it
    arguments: tuple[str, ...]  # what `fedprune solve` or `fedprune run` is given
    source: str = ""  # the collection that it is solved from; "" for a run with the clients
    base: str = ""  # the row whose model it starts from; "" for the dense model


_GROUP = "pruner.group_size=64"
_ON_MOMENTS = ("strategy=fedhessian", "pruner=gptq", _GROUP, "schedule=iterative")
RECIPES = (
    Recipe("wanda", "Wanda, 50 % zeros", ("pruner=wanda", "sparsity=0.5"), "columns"),
    Recipe("alps", "ALPS, 50 % zeros", ("pruner=alps", "sparsity=0.5"), "moments"),
    Recipe("w8", "W8, rounding", ("pruner=rounding", "pruner.bits=8", _GROUP), "columns"),
    Recipe("w4-rounding", "W4, rounding", ("pruner=rounding", _GROUP), "columns"),
    Recipe("w4-gptq", "W4, GPTQ", ("pruner=gptq", _GROUP), "moments"),
    Recipe(
        "joint",
        "SparseGPT 50 % and 4 bits at once",
        ("pruner=sparsegpt", "pruner.bits=4", _GROUP, "sparsity=0.5"),
        "moments",
    ),
    Recipe(
        "depth-plain",
        "a block less",
        ("strategy=depth", "strategy.remove=1", "strategy.repair=false"),
    ),
    Recipe("depth", "the same, with a map in its place", ("strategy=depth", "strategy.remove=1")),
    Recipe("depth-2", "two blocks less, with a map", ("strategy=depth", "strategy.remove=2")),
    Recipe(
        "ffn-plain",
        "a quarter of the neurons less, not refitted",
        ("pruner=structured", "sparsity=0.25", "pruner.repair=false"),
        "moments",
    ),
    Recipe(
        "ffn", "a quarter of the neurons less", ("pruner=structured", "sparsity=0.25"), "moments"
    ),
    Recipe("ffn-w4", "a quarter of the neurons less, then W4 by GPTQ", _ON_MOMENTS, base="ffn"),
    Recipe("depth-w4", "a block less with a map, then W4 by GPTQ", _ON_MOMENTS, base="depth"),
)


@dataclass(frozen=True)
class Figures:
    """What was measured of a model of one seed, all but bytes sent beside the dense model."""

    # size, mean, worst: bytes of its weights, perplexity over the domains and in the worst, as
    # multiples
    size: float
    mean: float
    worst: float
    kl: float
    top1: float
    sent: float  # bytes that a client sent
    # reads, writes: tokens a second as multiples; not a number where not measured
    reads: float = float("nan")
    writes: float = float("nan")


def main() -> None:
    """Make every model of every seed, measure them, and print the table."""
    arguments = parse_arguments()
    found: dict[str, list[Figures]] = {}
    dense = in_bfloat16(arguments.model, arguments.results / "dense")
    places = {seed: arguments.results / f"seed-{seed}" for seed in arguments.seeds}
    for seed, place in places.items():
        make(arguments, place, seed)
    for place in places.values():
        for name, one in measured(arguments, dense, place).items():
            found.setdefault(name, []).append(one)
    print(table(found))


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=lambda text: Path(text).absolute())
    parser.add_argument("texts", type=lambda text: Path(text).absolute())
    parser.add_argument("results", type=lambda text: Path(text).absolute())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=16, help="of a client")
    parser.add_argument("--windows", type=int, default=16, help="of a domain's held-out text")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--only", nargs="+", default=[one.name for one in RECIPES])
    parser.add_argument("--speed", action="store_true", help="measure tokens a second too")
    parser.add_argument("--rounds", type=int, default=15, help="how often models take turns")
    return parser.parse_args()


def in_bfloat16(model: Path, folder: Path) -> Path:
    """Return a copy of the dense model in the type in which all others are stored."""
    if not (folder / "config.json").is_file():
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def domains(texts: Path) -> list[str]:
    """Return the names of the domains."""
    return sorted(path.parent.name for path in texts.glob("*/train.txt"))


def chosen(arguments: argparse.Namespace) -> list[Recipe]:
    """Return the rows that are asked for."""
    return [one for one in RECIPES if one.name in arguments.only]


def make(arguments: argparse.Namespace, place: Path, seed: int) -> None:
    """Make what is not there yet of a seed's collections and models."""
    clients = len(domains(arguments.texts))
    shared = [
        *("model.dtype=bfloat16", f"seed={seed}", f"data={arguments.texts}"),
        *("data.glob=*/train.txt", "data.partition=by_group", "federation.backend=inline"),
        *(f"federation.num_clients={clients}", f"strategy.min_clients={clients}"),
        *(f"pruner.num_calibration_samples={arguments.samples}", "evaluation.max_windows=1"),
        *(f"pruner.seq_len={arguments.seq_len}", f"evaluation.seq_len={arguments.seq_len}"),
        *("evaluation.local_only=false", "evaluation.centralized=false"),
    ]
    for name, kinds in COLLECTIONS.items():
        if any(one.source == name for one in chosen(arguments)):
            asked = [f"strategy.statistics={kinds}", f"model={arguments.model}", *shared]
            fedprune(place / name, "statistics/statistics.json", "collect", *asked)
    for one in chosen(arguments):
        if one.source:
            own = ["solve", str(place / one.source), "evaluation.max_windows=1"]
        else:
            base = place / one.base / "model" if one.base else arguments.model
            own = ["run", f"model={base}", *shared]
        fedprune(place / one.name, "model/config.json", *own, *one.arguments)


def fedprune(folder: Path, last: str, *arguments: str) -> None:
    """Run a command of the product that fills a folder, unless that is there already."""
    if (folder / last).is_file() and (folder / "results.json").is_file():
        return
    command = ["fedprune", *arguments, f"output_dir={folder}"]
    print(shlex.join(command), file=sys.stderr, flush=True)
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(f"{ended.stdout}\nit ended with {ended.returncode}")


def sent_by_a_client(place: Path, recipe: Recipe) -> float:
    """Return the bytes that a client sent for a row: in its collection, or in all of its runs."""
    results = json.loads((place / (recipe.source or recipe.name) / "results.json").read_text())
    own = float(results["ledger"]["bytes_up"]) / len(results["clients"])
    before = [one for one in RECIPES if one.name == recipe.base]
    return own + sum(sent_by_a_client(place, one) for one in before)


def measured(arguments: argparse.Namespace, dense: Path, place: Path) -> dict[str, Figures]:
    """Return what the models of a seed are worth."""
    recipes = chosen(arguments)
    folders = [place / one.name / "model" for one in recipes]
    first, *others = evaluated(arguments, [dense, *folders])
    speeds = list(throughputs(arguments, dense, folders)) if arguments.speed else []
    found = {}
    for place_in_list, (recipe, own) in enumerate(zip(recipes, others, strict=True)):
        rises = [
            value["perplexity"] / first["perplexity"][label]["perplexity"]
            for label, value in own["perplexity"].items()
        ]
        values = own["perplexity"].values()
        found[recipe.name] = Figures(
            own["sizes"]["dense"] / first["sizes"]["dense"],
            geometric_mean(rises),
            max(rises),
            fmean(one["kl"] for one in values),
            fmean(one["top1"] for one in values),
            sent_by_a_client(place, recipe),
            *(speeds[place_in_list] if speeds else ()),
        )
    return found


def evaluated(arguments: argparse.Namespace, models: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what `fedprune evaluate` says of models, the first being the dense one."""
    first, *others = (arguments.texts / name / "test.txt" for name in domains(arguments.texts))
    sets = ",".join(map(str, others))
    command = [
        *("fedprune", "evaluate", *map(str, models), f"data={first}"),
        *(f"evaluation.datasets='{sets}'", "model.dtype=bfloat16"),
        *(f"evaluation.seq_len={arguments.seq_len}", f"evaluation.max_windows={arguments.windows}"),
        "--json",
    ]
    print(shlex.join(command), file=sys.stderr, flush=True)
    ended = subprocess.run(
        [sys.executable, "-m", *command], check=True, stdout=subprocess.PIPE, text=True
    )
    found: list[dict[str, Any]] = json.loads(ended.stdout)["models"]
    return found


def throughputs(
    arguments: argparse.Namespace, dense: Path, models: Sequence[Path]
) -> Iterator[tuple[float, float]]:
    """Yield of each model how fast it reads and writes, measured in turns with the dense one."""
    for start in range(0, len(models), _AT_ONCE):
        some = [dense, *models[start : start + _AT_ONCE]]
        found = compare_throughput(some, "cpu", arguments.seq_len, arguments.rounds)
        yield from ((one.prompt_ratio, one.generation_ratio) for one in found[1:])


def table(found: Mapping[str, Sequence[Figures]]) -> str:
    """Return the table in Markdown."""
    head = "made by, bytes, perplexity, worst domain, mean KL, same top token, reads, writes"
    titles = [*head.split(", "), "a client sends"]
    lines = [titles, ["---"] * len(titles)]
    dense = ["dense", "1.00", "1.000", "1.000", "0", "100 %", "1.00", "1.00", ""]
    labels = {one.name: one.label for one in RECIPES}
    rows = [[labels[name], *cells(seeds)] for name, seeds in found.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, dense, *rows])


def cells(seeds: Sequence[Figures]) -> list[str]:
    """Return a row's figures: means over the seeds, and how far from it one is at most."""

    def over(name: str, digits: int, factor: float = 1.0, unit: str = "") -> str:
        values = [factor * getattr(one, name) for one in seeds]
        mean = fmean(values)
        far = max(abs(value - mean) for value in values)
        spread = f" ± {far:.{digits}f}" if len(values) > 1 and far >= 0.5 * 10**-digits else ""
        return f"{mean:.{digits}f}{spread}{unit}"

    return [
        over("size", 2),
        over("mean", 3),
        over("worst", 3),
        over("kl", 4),
        over("top1", 1, 100, " %"),
        over("reads", 2),
        over("writes", 2),
        over("sent", 0, 1e-3, " kB"),
    ]


if __name__ == "__main__":
    main()
