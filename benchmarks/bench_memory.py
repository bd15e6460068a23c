"""Peak memory and time of a client and of the server, against model size and number of clients.

Generated models of 2, 4 and 8 blocks of 248 MB (bfloat16, the shape of a 3B Llama), and of 2 and 4
blocks of a mixture of experts, whose experts the library makes one tensor of. Each figure is that
of a process of its own; memory is what it adds to the imports, mapped files included.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from benchmarks.measure import report
from scripts.generate_model import PRESETS, draft_model, generate_model

BLOCKS = (2, 4, 8)
PLAIN_BLOCKS = 4  # the plain way sorts for minutes
MIXTURE_BLOCKS = (2, 4)
EXPERTS = 32  # a block of Qwen3-30B-A3B with as many is 0.34 GB
CLIENTS = (4, 16, 64, 256)
Run = Callable[[str, Path, int], dict[str, float]]
ROOT = Path(__file__).parents[1]


def make_models(shape: PreTrainedConfig, folder: Path, sizes: Sequence[int]) -> dict[int, Path]:
    """Generate a model of each size; returns number of blocks -> folder."""
    shape.save_pretrained(folder / "shape")
    models: dict[int, Path] = {}
    for blocks in sizes:
        models[blocks] = folder / f"blocks-{blocks}"
        generate_model(draft_model(str(folder / "shape"), "bfloat16", blocks, 0), models[blocks])
    return models


def in_its_own_process(role: str, model: Path, clients: int) -> dict[str, float]:
    """Return seconds and bytes of one role in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.roles", role, str(model), str(clients)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{role} on {model} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(run: Run, role: str, model: Path, blocks: int, clients: int) -> dict[str, str | float]:
    """Return one row of the table."""
    found = run(role, model, clients)
    return {
        "role": role,
        "blocks": blocks,
        "model, GB": sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e9,
        "clients": clients,
        "imports, MB": found["imports_bytes"] / 1e6,
        "added, MB": (found["peak_bytes"] - found["imports_bytes"]) / 1e6,
        "seconds": found["seconds"],
    }


def mixture_rows(folder: Path, run: Run, clients: int) -> list[dict[str, str | float]]:
    """Return rows of a mixture of experts whose files hold every expert's matrices apart."""
    kind, values = PRESETS["qwen3-30b-a3b"]
    fewer = {"vocab_size": 4096, "num_experts": EXPERTS}
    where = folder / "mixture"
    where.mkdir()
    models = make_models(AutoConfig.for_model(kind, **{**values, **fewer}), where, MIXTURE_BLOCKS)
    return [
        row(run, role, models[size], size, clients)
        for role in ("client", "server")
        for size in MIXTURE_BLOCKS
    ]


def main(
    shape: PreTrainedConfig | None = None,
    sizes: Sequence[int] = BLOCKS,
    clients: Sequence[int] = CLIENTS,
    run: Run = in_its_own_process,
) -> None:
    rows = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedprune-bench-") as folder:
        kind, values = PRESETS["open-llama-3b"]
        config = shape or AutoConfig.for_model(kind, **{**values, "vocab_size": 4096})
        models = make_models(config, Path(folder), sizes)
        for role in ("client", "server"):
            rows += [row(run, role, models[size], size, clients[0]) for size in sizes]
            plain = [size for size in sizes if size <= PLAIN_BLOCKS]
            rows += [row(run, f"plain-{role}", models[size], size, clients[0]) for size in plain]
        least = sizes[0]
        rows += [row(run, "server", models[least], least, number) for number in clients[1:]]
        rows += [row(run, "plain-server", models[least], least, clients[1])]
        if shape is None:
            rows += mixture_rows(Path(folder), run, clients[0])
    report("memory", f"Peak memory, {time.monotonic() - started:.0f} s in all", rows)


if __name__ == "__main__":
    main()
