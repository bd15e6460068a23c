"""A whole one-shot job in the shape of Llama 2 7B in one process: time and memory.

`python -m benchmarks.bench_7b` needs 27 GB of disk and should have a GPU; smaller:
`python -m benchmarks.bench_7b --blocks 1 --clients 2 --seq-len 128`. Not part of `make bench`.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import NO_BASELINES, Rates, block_floor, report
from fedprune.cli.inline import run_inline
from fedprune.config import config_from_overrides
from fedprune.models.device import pick_device
from fedprune.models.loading import load_model
from fedprune.results.environment import peak_device_bytes, peak_rss_bytes
from scripts.generate_model import draft_model, generate_model


def settings(model: Path, options: argparse.Namespace) -> list[str]:
    """Return the job's overrides."""
    return [
        f"model={model}",
        f"strategy.min_clients={options.clients}",
        f"federation.num_clients={options.clients}",
        f"pruner.num_calibration_samples={options.samples}",
        f"pruner.seq_len={options.seq_len}",
        f"evaluation.seq_len={options.seq_len}",
        "evaluation.max_windows=2",
        *NO_BASELINES,
    ]


def measure(folder: Path, options: argparse.Namespace) -> dict[str, str | float]:
    """Generate the model, run the job, return the row of the table."""
    model, run = folder / "model", folder / "run"
    generate_model(draft_model(options.shape, "bfloat16", options.blocks, 0), model)
    overrides = settings(model, options)
    config = config_from_overrides(overrides)
    loaded, device = load_model(config.model), pick_device(config.pruner.device)
    rates = Rates.of(device, torch.bfloat16, options.seq_len)
    blocks = len(loaded.layout.blocks)
    floor = block_floor(loaded, options.samples, options.seq_len, rates) * blocks * options.clients
    started = time.monotonic()
    run_config = {"overrides": " ".join(overrides), "output-dir": str(run)}
    ended = run_inline(run_config, options.clients, lambda line: None)
    wall = time.monotonic() - started
    if not ended.completed:
        sys.exit(f"The run failed: {ended.details}")
    timings = json.loads((run / "results.json").read_text())["seconds"]
    return {
        "device": str(device),
        "blocks": blocks,
        "clients": options.clients,
        "samples x tokens": f"{options.samples} x {options.seq_len}",
        "floor, s": floor,
        "prune, s": timings["prune"],
        "prune / floor": timings["prune"] / floor,
        "whole job, s": wall,
        "peak memory, GB": peak_rss_bytes() / 1e9,
        "peak on the GPU, GB": peak_device_bytes() / 1e9,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One-shot FedPrLLM in the shape of Llama 2 7B.")
    parser.add_argument("--shape", default="llama-2-7b", help="another preset, or a folder")
    parser.add_argument("--blocks", type=int, help="only the first N of 32 blocks")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--folder", help="where the model goes for a while (the system's own)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fedprune-bench-", dir=options.folder) as folder:
        row = measure(Path(folder), options)
    report("7b", "One-shot FedPrLLM, Llama 2 7B's shape, bfloat16, one process", [row])


if __name__ == "__main__":
    main()
