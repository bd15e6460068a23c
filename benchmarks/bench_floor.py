"""A client's seconds a block, against what moving its weights and its matrix products must take.

Two generated blocks of 248 MB (bfloat16, the shape of a 3B Llama), Wanda at 50 %, one core.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measure import Rates, block_floor, report
from fedprune.config import config_from_overrides
from fedprune.models.loading import LoadedModel, load_model
from fedprune.pruning.blocks import BlockWalk, prune_blocks
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import make_pruner
from fedprune.wire.changes import mask_of
from fedprune.wire.masks import encode_masks
from scripts.generate_model import draft_model, generate_model

CASES = ((1, 128), (2, 128), (8, 128), (2, 512))
BLOCKS = 2


def seconds_a_block(loaded: LoadedModel, samples: int, tokens: int) -> float:
    """Return how long a client takes for the first block and the inputs of the second."""
    config = config_from_overrides([])
    texts = [torch.randint(4, 1024, (tokens,)) for _ in range(samples)]
    walk = BlockWalk(loaded, texts)
    started = time.perf_counter()
    blocks = prune_blocks(walk, make_pruner(config.pruner), block_specs(config, range(2), BLOCKS))
    _, changes = next(blocks)
    encode_masks({name: mask_of(change) for name, change in changes.items()})
    return time.perf_counter() - started


def compare(loaded: LoadedModel, samples: int, tokens: int) -> dict[str, str | float]:
    """Return one row of the table."""
    rates = Rates.of(torch.device("cpu"), torch.bfloat16, tokens)
    taken = min(seconds_a_block(loaded, samples, tokens) for _ in range(2))
    floor = block_floor(loaded, samples, tokens, rates)
    return {
        "samples x tokens": f"{samples} x {tokens}",
        "copying, GB/s": rates.moved / 1e9,
        "products, GFLOP/s": rates.products / 1e9,
        "floor, s": floor,
        "block, s": taken,
        "times the floor": taken / floor,
    }


def main(shape: str = "open-llama-3b", cases: Sequence[tuple[int, int]] = CASES) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fedprune-bench-") as folder:
        model = Path(folder) / "model"
        generate_model(draft_model(shape, "bfloat16", BLOCKS, 0), model)
        loaded = load_model(config_from_overrides([f"model={model}"]).model)
        seconds_a_block(loaded, 1, 16)  # compile
        rows = [compare(loaded, *case) for case in cases]
    report("floor", "A client's block, one core, bfloat16", rows)


if __name__ == "__main__":
    main()
