"""What benchmarks share: layers to work on, side-by-side timing, the floor, tables.

A layer looks like those of language models. Every case is timed in turn, many rounds, medians. The
floor is the least time that the work can take on this machine, from rates measured on it.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedprune.config import RunConfig
from fedprune.data.clients import client_samples
from fedprune.data.texts import load_documents
from fedprune.models.device import wait
from fedprune.models.loading import LoadedModel

OUT = Path(__file__).parent / "out"
SHAPES = ((4096, 4096), (11008, 4096))
NO_BASELINES = ("evaluation.local_only=false", "evaluation.centralized=false")
"""Overrides of a job that measures what a real federation does."""

_READS = 5


def layer(shape: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return (weight, norms of the inputs): heavy-tailed, a few inputs loud; fp16 can hold them."""
    rng = np.random.default_rng(seed)
    rows = rng.lognormal(0, 0.3, (shape[0], 1))
    weight = (rng.standard_t(5, shape) * rows).astype(np.float16).astype(np.float32)
    norms = rng.lognormal(0, 0.5, shape[1])
    loud = rng.random(shape[1]) < 0.005
    norms[loud] *= rng.uniform(5, 50, loud.sum())
    return torch.from_numpy(weight), torch.from_numpy(norms.astype(np.float32))


def samples_of(
    config: RunConfig, loaded: LoadedModel, partition: int, clients: int
) -> list[Tensor]:
    """Return the tokens of the samples that a client draws."""
    documents = load_documents(config.data, "train")
    found = client_samples(config, documents, loaded.tokenizer, partition, clients)
    return [sample.tokens for sample in found]


def alternate(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each single-threaded case; each round runs every case.

    CPU time is wall time on an idle machine, and does not count the time that other programs
    take from this one. Alternating exposes all cases to the same disturbances, so that ratios can
    be trusted where absolute times cannot. A first, untimed round compiles and warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = time.thread_time()
            case()
            if turn:
                seconds[name].append(time.thread_time() - start)
    return {name: median(times) for name, times in seconds.items()}


def report(name: str, title: str, rows: Sequence[Mapping[str, str | float]]) -> None:
    """Show rows of equal keys as a table and write them to ``benchmarks/out/<name>.json``."""
    table = Table(title=title)
    for number, key in enumerate(rows[0]):
        table.add_column(key, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
    Console().print(table)
    OUT.mkdir(exist_ok=True)
    machine = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("numpy", "numba", "torch")},
    }
    content = {"title": title, "versions": machine, "rows": list(rows)}
    (OUT / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class Rates:
    """What a device does in a second."""

    # bytes of weights that reach where they are used: read from memory, or copied to the GPU
    moved: float
    products: float  # floating-point operations of matrix products in the model's type

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, tokens: int) -> "Rates":
        """Measure a device with as many rows as a sample has tokens."""
        size = 4096
        weight = torch.ones(size, size, dtype=dtype)
        inputs = torch.ones(tokens, size, dtype=dtype, device=device)
        there = weight.to(device, copy=True)
        on_cpu = device.type == "cpu"
        # On the CPU a copy reads and writes.
        move = (lambda: there.copy_(weight)) if on_cpu else (lambda: weight.to(device))
        moved = weight.nbytes * (2 if on_cpu else 1) / best(move, device)
        products = 2 * tokens * size**2 / best(lambda: inputs @ there.T, device)
        return cls(moved, products)


def best(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of some rounds of a piece of work."""
    seconds = []
    for _ in range(_READS):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def block_floor(loaded: LoadedModel, samples: int, tokens: int, rates: Rates) -> float:
    """Return the least seconds of a client's block.

    Its weights move once, and every sample passes them twice: dense for the statistics, pruned for
    the next block's inputs.
    """
    tensors = loaded.block_tensors(0).values()
    size = sum(tensor.nbytes for tensor in tensors)
    linear = sum(rows * columns for rows, columns in loaded.layout.shapes()[0].values())
    return size / rates.moved + 2 * 2 * linear * samples * tokens / rates.products


def read_pass(weight: Tensor) -> None:
    """Read every weight once."""
    weight.view(torch.int32).amax()


def floor_of(seconds: float, read: float, moved: float, read_bytes: int) -> dict[str, float]:
    """Return the floor of a step that moves some bytes, and how far from it its seconds are.

    ``read`` is the time of a plain read pass over ``read_bytes``.
    """
    floor = read * moved / read_bytes
    return {"floor, ms": floor * 1e3, "times the floor": seconds / floor}
