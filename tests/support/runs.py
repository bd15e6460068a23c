"""Folders of made-up runs, with small random masks."""

import json
from pathlib import Path

import numpy as np

from fedprune.config import config_from_overrides, to_yaml
from fedprune.wire.masks import BitMask
from tests.support.masks import write_sidecar
from tests.support.reports import made_up

SHAPES = {"q_proj": (5, 7), "down_proj": (3, 11)}


def drawn(seed: int, blocks: int = 2) -> dict[int, dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    return {
        block: {name: draw.random(shape) < 0.6 for name, shape in SHAPES.items()}
        for block in range(blocks)
    }


def packed(masks: dict[int, dict[str, np.ndarray]]) -> dict[int, dict[str, BitMask]]:
    return {
        block: {name: BitMask.from_bool(mask) for name, mask in found.items()}
        for block, found in masks.items()
    }


def run(folder: Path, masks=None, *overrides: str, pruned: float = 12.5) -> Path:
    folder.mkdir()
    results = made_up(["a", "b"], 2, *overrides)
    results["perplexity"]["text"]["pruned"] = pruned
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(to_yaml(config_from_overrides(list(overrides))))
    if masks is not None:
        write_sidecar(folder / "masks.safetensors", packed(masks), "model.layers")
    return folder
