"""The same seeds give the same models, whatever the code inside looks like.

The hashes were made once. Floating-point results differ between processors and releases of torch,
so they stand under a mark of the machine's own numerics; elsewhere the test is skipped and says how
to make them: ``python -m tests.integration.test_same_masks``.
"""

import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from fedprune.models.embedded import demo_model_path
from tests.support.jobs import job

HASHES = Path(__file__).with_name("same_masks.json")

PUBLISHED = "strategy.majority_floor=false"  # votes

JOBS = {
    "fedprllm, layer, wanda": ["pruner=wanda", PUBLISHED],
    "fedprllm, row, ria, iterative, scaled": [
        "pruner=ria",
        "schedule=iterative",
        "strategy.group=row",
        "strategy.scaling=true",
        PUBLISHED,
    ],
    "fedprllm, column, random ties, floor": [
        "strategy.group=column",
        "strategy.ties=random",
        "strategy.majority_floor=true",
        "sparsity=0.6",
    ],
    "fedprllm, magnitude, per block": [
        "pruner=magnitude",
        "pruner.group=layer",
        "allocation=per_block",
        "allocation.blocks='0.3,0.7,0.5,0.5,0.6,0.4'",
        PUBLISHED,
    ],
    "fedprllm, 2:4": ["pruner.pattern=2:4", PUBLISHED],
    "fedprllm, owl": ["allocation=owl", "sparsity=0.6", PUBLISHED],
    "fedspallm, sparsegpt": ["strategy=fedspallm", "pruner=sparsegpt", "sparsity=0.6"],
    "fedspallm, half the layers, two rounds": [
        "strategy=fedspallm",
        "strategy.layer_fraction=0.5",
        "strategy.rounds=2",
        "strategy.ramp=linear",
        "sparsity=0.6",
    ],
    "fedstats, iterative": ["strategy=fedstats", "schedule=iterative"],
    "fedstats, dense prefix, by client": [
        "strategy=fedstats",
        "schedule.prefix=dense",
        "strategy.pooling=clients",
    ],
    "fedhessian, sparsegpt, iterative": [
        "strategy=fedhessian",
        "pruner=sparsegpt",
        "schedule=iterative",
    ],
    "fedhessian, alps, eigen": [
        "strategy=fedhessian",
        "pruner=alps",
        "strategy.moments=eigen",
        "sparsity=0.7",
    ],
    "fedhessian, sparseswaps, nystrom": [
        "strategy=fedhessian",
        "pruner=sparseswaps",
        "strategy.moments=nystrom",
        "strategy.bits_per_weight=1",
    ],
}


def numerics() -> str:
    """Return a mark of how this machine rounds: a model's logits and a factorisation."""
    model = AutoModelForCausalLM.from_pretrained(demo_model_path())
    with torch.no_grad():
        logits = model(torch.arange(96).reshape(1, -1) % 200).logits
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((256, 300))).float()
    factor = torch.linalg.cholesky(matrix @ matrix.T + torch.eye(256))
    marks = (logits.numpy().tobytes(), factor.numpy().tobytes(), torch.linalg.eigh(factor)[1])
    return hashlib.sha256(marks[0] + marks[1] + marks[2].numpy().tobytes()).hexdigest()[:16]


def write_texts(folder: Path) -> Path:
    """Write texts of three owners that no library changes."""
    draw = random.Random(7)
    words = ["return", "value", "list", "the", "of", "a", "name", "file", "if", "is", "not", "def"]
    for owner in range(3):
        own = [f"word{owner}{number}" for number in range(20)]
        for number in range(6):
            text = " ".join(draw.choices(words + own, k=900))
            path = folder / f"owner{owner}" / f"text{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return folder


def model_hash(folder: Path) -> str:
    """Return the hash of all tensors of a run's model, by name."""
    found = hashlib.sha256()
    tensors = {}
    for path in sorted((folder / "model").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def run(name: str, texts: Path, folder: Path) -> str:
    job(folder, f"data={texts}", "data.glob='**/*.txt'", *JOBS[name])
    return model_hash(folder)


@pytest.fixture(scope="module")
def known():
    mark, kept = numerics(), json.loads(HASHES.read_text())
    if mark not in kept:
        pytest.skip(f"no hashes for numerics {mark}: they are made by this file, see its top")
    return kept[mark]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


# Ten seconds each.
LONG = ("fedhessian, alps, eigen", "fedhessian, sparseswaps, nystrom")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one in LONG)) for one in JOBS]
)
def test_the_same_seeds_give_the_same_model(name, known, texts, tmp_path):
    assert run(name, texts, tmp_path / "run") == known[name]


if __name__ == "__main__":
    kept = json.loads(HASHES.read_text()) if HASHES.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        made = write_texts(Path(scratch) / "texts")
        found = {name: run(name, made, Path(scratch) / str(i)) for i, name in enumerate(JOBS)}
    HASHES.write_text(json.dumps(kept | {numerics(): found}, indent=1) + "\n")
    sys.exit(0)
