"""Every benchmark runs, at a size that takes a moment; what it measures then means nothing."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig

from benchmarks import (
    __main__,
    bench_7b,
    bench_federation,
    bench_floor,
    bench_masks,
    bench_memory,
    bench_secure,
    bench_secure_runs,
    bench_sparsegpt,
    bench_votes,
    measure,
    roles,
)
from fedprune.cli.inline import run_inline

SHAPES = ((64, 128), (96, 128))


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    """Write to a folder of the test, and leave torch's threads as they are."""
    monkeypatch.setattr(measure, "OUT", tmp_path / "out")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return tmp_path / "out"


@pytest.fixture
def shape():
    return LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=1024,
    )


@pytest.fixture
def shape_folder(shape, tmp_path):
    shape.save_pretrained(tmp_path / "shape")
    return str(tmp_path / "shape")


def rows(out, name):
    return json.loads((out / f"{name}.json").read_text())["rows"]


def test_masks(out):
    bench_masks.main(SHAPES, 1)
    assert [row["group"] for row in rows(out, "masks")] == ["row", "row", "layer", "column", "2:4"]
    assert all(row["floor, ms"] > 0 for row in rows(out, "masks"))
    assert len(rows(out, "wire")) == len(bench_masks.PATTERNS)


def test_votes(out):
    bench_votes.main(SHAPES, 1)
    assert len(rows(out, "votes")) == 2 * 7
    assert all(row["decoded differ, %"] < 5 for row in rows(out, "decode"))


def test_reconstruction(out):
    bench_sparsegpt.main((128, 256), 1)
    assert [row["step"].split(",")[0] for row in rows(out, "sparsegpt")][1:] == [
        "SparseGPT",
        "SparseGPT",
        "ALPS",
    ]


def test_a_clients_block(out, shape_folder):
    bench_floor.main(shape_folder, [(1, 16)])
    assert rows(out, "floor")[0]["samples x tokens"] == "1 x 16"


def test_memory(out, shape):
    bench_memory.main(shape, (1,), (2, 3), roles.measured)
    found = [(row["role"], row["blocks"], row["clients"]) for row in rows(out, "memory")]
    assert found[-2:] == [("server", 1, 3), ("plain-server", 1, 3)] and len(found) == 6


def test_secure_sums(out):
    bench_secure.main(3, 64, 2, (128, 8), 1)
    assert [row["bits"] for row in rows(out, "masks_of_sums")] == [8, 16, 32, 64, 128]
    steps = rows(out, "secure")
    assert [row["step"] for row in steps[:3]] == ["keys", "shares", "receive"]
    assert len(steps) == 2 * 8 and steps[7]["bytes up"] > 2 * steps[3]["bytes up"] > 0


def test_runs_under_masks(out):
    def inline(overrides, folder):
        quick = ["pruner.seq_len=16", "evaluation.max_windows=1"]
        options = " ".join([*overrides, *quick])
        run_config = {"overrides": options, "output-dir": str(folder)}
        assert run_inline(run_config, 3, lambda line: None).completed
        return 1.0

    bench_secure_runs.main(1, inline)
    plain, secure, times = rows(out, "secure_runs")
    assert secure["bytes_up"] > plain["bytes_up"] > 0
    assert times["bytes_up"] == pytest.approx(secure["bytes_up"] / plain["bytes_up"])


def test_federation(out):
    def inline(overrides, clients, folder):
        run_config = {"overrides": " ".join(overrides), "output-dir": str(folder)}
        assert run_inline(run_config, clients, lambda line: None).completed

    bench_federation.main(2, (1,), inline)
    assert rows(out, "federation")[0]["samples per client"] == 1


def test_7b(out, shape_folder):
    options = ["--shape", shape_folder, "--clients", "2", "--samples", "1", "--seq-len", "64"]
    bench_7b.main(options)
    assert rows(out, "7b")[0]["blocks"] == 2


def test_all_of_them_are_run(monkeypatch):
    ran = []
    for name, module in vars(__main__).items():
        if isinstance(module, ModuleType) and name.startswith("bench_"):
            monkeypatch.setattr(module, "main", lambda name=name: ran.append(name))
    __main__.main()
    files = {path.stem for path in Path(__main__.__file__).parent.glob("bench_*.py")}
    assert set(ran) == files - {"bench_7b"}  # which wants a GPU, and minutes without one
