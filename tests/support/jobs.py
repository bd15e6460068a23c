"""Whole jobs in this process: run, read back, and disturb what arrives."""

import json
import random
from pathlib import Path

import numpy as np
import torch
import transformers as hf

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.data.clients import client_samples
from fedprune.data.texts import load_documents
from fedprune.models.embedded import demo_model_path
from fedprune.models.export import SIDECAR, export_model
from fedprune.models.loading import LoadedModel, load_model, loaded_from
from fedprune.models.sidecar import read_sidecar
from fedprune.pruning.blocks import prune_blocks
from fedprune.pruning.groups import block_specs
from fedprune.pruning.paired import walk_for
from fedprune.pruning.registry import make_pruner, towards
from fedprune.wire.masks import BitMask
from server_app.job import run_job
from tests.support.grid import LocalGrid

QUIET = (
    "evaluation.local_only=false",
    "evaluation.centralized=false",
    "evaluation.max_windows=1",
    "strategy.wait=1",
    "strategy.min_clients=1",
    "pruner.num_calibration_samples=2",
    "pruner.seq_len=48",
)


#: Of the linear maps of each of the demo model's blocks.
DEMO_SHAPES = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (64, 128),
    "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (352, 128),
    "mlp.up_proj": (352, 128),
    "mlp.down_proj": (128, 352),
}


class Shuffled(LocalGrid):
    """Replies become visible at random moments, so that they arrive in any order."""

    def __init__(self, app, nodes, seed=0, **more):
        super().__init__(app, nodes, **more)
        self._draw = random.Random(seed)

    def pull_messages(self, message_ids):
        return super().pull_messages([m for m in message_ids if self._draw.random() < 0.4])


class Stopping(LocalGrid):
    """A federation whose messages of a kind stop the server, as a kill would, after some."""

    def __init__(self, kind="train.prune", after=None, clients=3, error=KeyboardInterrupt):
        super().__init__(app, clients)
        self._kind, self._left, self._error = kind, after, error

    def deliver(self, message):
        if self._left is not None and message.metadata.message_type == self._kind:
            self._left -= 1
            if self._left < 0:
                self._left = None
                raise self._error
        return super().deliver(message)


def job(folder: Path, *overrides: str, clients: int = 3, grid=None) -> dict:
    """Run a job quickly and return its results."""
    options = " ".join([*QUIET, *overrides])
    grid = grid or LocalGrid(app, clients)
    run_job(grid, {"overrides": options, "output-dir": str(folder)}, 11)
    return json.loads((folder / "results.json").read_text())


def masks_of(folder: Path) -> dict[tuple[int, str], np.ndarray]:
    """Return the masks beside an exported model."""
    found = read_sidecar(folder / "model" / SIDECAR)
    return {(b, n): mask.to_bool() for b, masks in found.items() for n, mask in masks.items()}


def weights_of(folder: Path) -> dict[tuple[int, str], torch.Tensor]:
    """Return the prunable weights of an exported model."""
    return weights_in(load_model(config_from_overrides([f"model={folder / 'model'}"]).model))


def whole_model(*overrides: str) -> LoadedModel:
    """Return a model in memory whole, as the library loads it, to run or change."""
    mapped = load_model(config_from_overrides([*overrides]).model)
    model = hf.AutoModelForCausalLM.from_pretrained(mapped.path, dtype="auto")
    return loaded_from(model, mapped.tokenizer, mapped.path)


def weights_in(loaded) -> dict[tuple[int, str], torch.Tensor]:
    """Return (block, linear) -> weight of a loaded model."""
    return {
        (block, name): loaded.weight(block, name).clone()
        for block in range(len(loaded.layout.blocks))
        for name in loaded.layout.linears(block)
    }


def same_masks(first, second) -> bool:
    """Return whether two runs pruned exactly the same weights."""
    return set(first) == set(second) and all(np.array_equal(first[k], second[k]) for k in first)


def samples_of(clients: int, *overrides: str) -> list[list[torch.Tensor]]:
    """Return the samples that each client of a job draws."""
    config = config_from_overrides([*QUIET, *overrides])
    documents = load_documents(config.data, "train")
    tokenizer = load_model(config.model).tokenizer
    return [
        [s.tokens for s in client_samples(config, documents, tokenizer, partition, clients)]
        for partition in range(clients)
    ]


def central(clients: int, *overrides: str):
    """The same pruner on one pooled walk: (block, linear) -> what becomes of it."""
    config = config_from_overrides([*QUIET, *overrides])
    loaded = load_model(config.model)
    total = len(loaded.layout.blocks)
    samples = [sample for own in samples_of(clients, *overrides) for sample in own]
    specs = block_specs(config, range(total), total)
    pruner = towards(make_pruner(config.pruner), config)
    made = prune_blocks(walk_for(pruner)(loaded, samples), pruner, specs)
    return {(b, name): change for b, changes in made for name, change in changes.items()}


def striped_demo(folder: Path, every: int) -> Path:
    """Export the demo model with the first half of every so many weights of a row and no others."""
    loaded = load_model(config_from_overrides([]).model)
    changes = {
        block: {
            name: BitMask.from_bool(np.indices(shape)[1] % every < every // 2)
            for name, shape in named.items()
        }
        for block, named in enumerate(loaded.layout.shapes())
    }
    export_model(loaded, changes, folder)
    return folder


def first_blocks(folder: Path, blocks: int) -> Path:
    """Write the demo model with so many of its blocks, the first ones, and its tokenizer."""
    model = hf.AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype="auto")
    model.model.layers = model.model.layers[:blocks]
    model.config.num_hidden_layers = blocks
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(demo_model_path()).save_pretrained(folder)
    return folder


def opt_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a small OPT with biases and LayerNorms, random weights, and the demo's tokenizer."""
    config = hf.OPTConfig(
        vocab_size=1024,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=64,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = hf.OPTForCausalLM(config)
        for parameter in model.parameters():
            parameter.data = (parameter + 0.1 * torch.randn(parameter.shape)).to(dtype)
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(demo_model_path()).save_pretrained(folder)
    return folder


def described(results: dict) -> None:
    """Assert that docs/results.md names what a strategy adds to the results."""
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    for key in results["method"]:
        assert f"`method.{key}`" in text, key
    for section, values in results["strategy"].items():
        values = values[0] if isinstance(values, list) else values
        assert f"`strategy.{section}" in text, section
        for key in () if isinstance(values, str) else values:
            assert f".{key}" in text or f"`strategy.{section}.*`" in text, key


def small_messages(monkeypatch, size: int) -> None:
    """Let messages be so small that replies and updates travel in several."""
    for module in ("messages", "course", "evaluation"):
        monkeypatch.setattr(f"strategies.{module}.MESSAGE_BYTES", size)


def small_inputs(folder, texts: int) -> list[str]:
    """Write a small OPT and so many texts; return the overrides that name them."""
    draw, words = random.Random(0), "return the sum of all that a list of numbers holds".split()
    lines = [json.dumps({"text": " ".join(draw.choices(words, k=400))}) for _ in range(texts)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    model = opt_folder(folder / "opt")
    return [f"model={model}", f"data={folder / 'texts.jsonl'}", "data.partition=iid"]


def refusals(results: dict) -> dict[str, str]:
    """Return the clients whose replies were refused in some results, and why."""
    entries = results["ledger"]["entries"]
    return {entry["client"]: entry["refused"] for entry in entries if entry["refused"]}
