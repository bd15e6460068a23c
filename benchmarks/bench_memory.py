"""Peak memory and time of a client and of the server, against model size and number of clients.

Generated models of 2, 4 and 8 blocks of 248 MB (bfloat16, the shape of a 3B Llama). Each figure is
that of a process of its own; memory is what it adds to the imports, mapped files included.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transformers import LlamaConfig

from benchmarks.timing import report
from scripts.generate_model import PRESETS, draft_model, generate_model

BLOCKS = (2, 4, 8)
PLAIN_BLOCKS = 4  # the plain way sorts for minutes
CLIENTS = (4, 16, 64, 256)
ROOT = Path(__file__).parents[1]


def make_models(folder: Path) -> dict[int, Path]:
    """Generate a model of each size; returns number of blocks -> folder."""
    kind, values = PRESETS["open-llama-3b"]
    LlamaConfig(**{**values, "vocab_size": 4096}).save_pretrained(folder / kind)
    models = {}
    for blocks in BLOCKS:
        models[blocks] = folder / f"blocks-{blocks}"
        generate_model(draft_model(str(folder / kind), "bfloat16", blocks, 0), models[blocks])
    return models


def run(role: str, model: Path, clients: int) -> dict[str, float]:
    """Return seconds and bytes of one role in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.roles", role, str(model), str(clients)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{role} on {model} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(role: str, model: Path, blocks: int, clients: int) -> dict[str, str | float]:
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


def main() -> None:
    rows = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedprune-bench-") as folder:
        models = make_models(Path(folder))
        for role in ("client", "server"):
            rows += [row(role, models[blocks], blocks, CLIENTS[0]) for blocks in BLOCKS]
            plain = [blocks for blocks in BLOCKS if blocks <= PLAIN_BLOCKS]
            rows += [row(f"plain-{role}", models[blocks], blocks, CLIENTS[0]) for blocks in plain]
        least = BLOCKS[0]
        rows += [row("server", models[least], least, clients) for clients in CLIENTS[1:]]
        rows += [row("plain-server", models[least], least, CLIENTS[1])]
    report("memory", f"Peak memory, {time.monotonic() - started:.0f} s in all", rows)


if __name__ == "__main__":
    main()
