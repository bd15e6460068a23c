"""What Flower adds: a one-shot simulation against the same work in one plain loop.

Both prune the embedded model for the same clients with the same samples; the masks must be equal.
The loop is one process with one thread; the simulation has a worker a core.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import NO_BASELINES, report, samples_of
from fedprune.config import RunConfig, config_from_overrides
from fedprune.methods.vote_selection import Rule, select
from fedprune.methods.votes import VoteCounter
from fedprune.models.export import SIDECAR
from fedprune.models.loading import LoadedModel, load_model
from fedprune.models.sidecar import read_sidecar
from fedprune.pruning.blocks import BlockWalk, prune_blocks
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import make_pruner
from fedprune.wire.masks import BitMask

Run = Callable[[Sequence[str], int, Path], object]
Masks = dict[tuple[int, str], BitMask]


def overrides(samples: int, clients: int) -> list[str]:
    """Return the job's overrides."""
    return [
        f"federation.num_clients={clients}",
        f"strategy.min_clients={clients}",
        f"pruner.num_calibration_samples={samples}",
        *NO_BASELINES,
        "evaluation.max_windows=1",
        "strategy.majority_floor=false",  # the loop adds up votes, as the paper does
    ]


def plain_loop(config: RunConfig, loaded: LoadedModel) -> Masks:
    """Prune for one client after another and count votes; no Flower, no messages."""
    count = len(loaded.layout.blocks)
    specs = block_specs(config, range(count), count)
    votes: dict[tuple[int, str], VoteCounter] = {}
    clients = config.federation.num_clients
    for partition in range(clients):
        walk = BlockWalk(loaded, samples_of(config, loaded, partition, clients))
        for block, masks in prune_blocks(walk, make_pruner(config.pruner), specs):
            for name, mask in masks.items():
                votes.setdefault((block, name), VoteCounter(mask.numel)).add(mask)
    chosen: Masks = {}
    for (block, name), counter in votes.items():
        weight = loaded.weight(block, name)
        magnitude, shape = weight.abs().float().reshape(-1).numpy(), tuple(weight.shape)
        chosen[block, name] = select(counter, config.sparsity, magnitude, shape, Rule())
    return chosen


def by_command(overrides: Sequence[str], clients: int, folder: Path) -> None:
    """Run the job through Flower."""
    command = [sys.executable, "-m", "fedprune", "run", *overrides, f"output_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def simulate(
    run: Run, overrides: Sequence[str], clients: int, folder: Path
) -> tuple[float, dict[str, float], Masks]:
    """Run the job; return wall seconds, the server's own and the masks."""
    started = time.monotonic()
    run(overrides, clients, folder)
    wall = time.monotonic() - started
    results = json.loads((folder / "results.json").read_text())
    found = read_sidecar(folder / "model" / SIDECAR)
    masks = {(block, name): mask for block, named in found.items() for name, mask in named.items()}
    return wall, results["seconds"], masks


def compare(samples: int, clients: int, run: Run) -> dict[str, str | float]:
    """Return one row of the table."""
    job = overrides(samples, clients)
    config = config_from_overrides(job)
    loaded = load_model(config.model)
    plain_loop(config_from_overrides([*overrides(1, clients), "pruner.seq_len=16"]), loaded)
    started = time.monotonic()
    expected = plain_loop(config, loaded)  # what it compiles was compiled before
    loop = time.monotonic() - started
    with tempfile.TemporaryDirectory() as folder:
        wall, timings, masks = simulate(run, job, clients, Path(folder) / "run")
    same = all(np.array_equal(masks[key].bits, mask.bits) for key, mask in expected.items())
    if not same:
        raise RuntimeError("The simulation's masks differ from the loop's.")
    return {
        "samples per client": samples,
        "loop, s": loop,
        "command, s": wall,
        "command / loop": wall / loop,
        "handshake, s": timings["handshake"],
        "prune, s": timings["prune"],
        "prune / loop": timings["prune"] / loop,
        "server, s": timings["load"] + timings["evaluate"] + timings["export"],
        "Flower starts and stops, s": wall - timings["total"],
    }


def main(clients: int = 64, samples: Sequence[int] = (2, 32), run: Run = by_command) -> None:
    torch.set_num_threads(1)
    title = f"{clients} clients, embedded model, one-shot: Flower against one plain loop"
    report("federation", title, [compare(number, clients, run) for number in samples])


if __name__ == "__main__":
    main()
