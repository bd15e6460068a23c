"""Peak memory does not grow with the number of a model's blocks, measured in fresh processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from scripts.generate_model import draft_model, generate_model

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of 4 and 8 blocks of 51 MB: 0.2 and 0.4 GB."""
    folder = tmp_path_factory.mktemp("models")
    LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        vocab_size=1024,
    ).save_pretrained(folder / "shape")
    for blocks in (4, 8):
        draft = draft_model(str(folder / "shape"), "float32", blocks, 0)
        generate_model(draft, folder / f"{blocks}")
    return {blocks: folder / f"{blocks}" for blocks in (4, 8)}


def added(role: str, model: Path, clients: int) -> float:
    """Return the bytes by which a role's peak exceeds its process's imports."""
    command = [sys.executable, "-m", "benchmarks.roles", role, str(model), str(clients)]
    done = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak_bytes"] - found["imports_bytes"]


def grows(few: tuple[str, Path, int], many: tuple[str, Path, int]) -> bool:
    """Return whether a peak grows by more than 30 %, each time that it is measured.

    A busy machine's page cache can add to one peak: mapped files count. What the code holds is in
    every one.
    """
    return all(added(*many) > 1.3 * added(*few) for _ in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("role", ["client", "server"])
def test_twice_the_blocks_take_hardly_more_memory(role, models):
    assert not grows((role, models[4], 2), (role, models[8], 2))


@pytest.mark.slow
def test_many_clients_take_hardly_more_memory_than_a_few(models):
    assert not grows(("server", models[4], 3), ("server", models[4], 24))
