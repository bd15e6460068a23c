"""A real sweep in this process: run, resumed, and with a job that fails."""

import csv
import json
import shutil
from urllib.parse import quote

import pytest

from fedprune.cli import main

ONE = ["--jobs", "1"]
SMALL = ["pruner.num_calibration_samples=2", "pruner.seq_len=32", "evaluation.max_windows=4"]


@pytest.fixture
def user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sweep_resume_and_table(user, short_model, capsys):
    small = [short_model, *SMALL]
    command = ["sweep", "sparsity=0.3,0.6", "seed=0,1", "output_dir=out", *small, *ONE]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "job 4 of 4: sparsity=0.6 seed=1" in shown.err
    assert "sparsity 0.6" in shown.out and "centralised" in shown.out
    folder = user / "out"
    table = list(csv.DictReader((folder / "table.csv").open()))
    assert [(row["sparsity"], row["seed"]) for row in table] == [
        ("0.3", "0"),
        ("0.3", "1"),
        ("0.6", "0"),
        ("0.6", "1"),
    ]
    for row in table:
        job = folder / f"sparsity={row['sparsity']},seed={row['seed']}"
        results = json.loads((job / "results.json").read_text())
        assert float(row["perplexity.stdlib.pruned"]) == results["perplexity"]["stdlib"]["pruned"]
        assert results["sparsity"]["overall"] == pytest.approx(float(row["sparsity"]), abs=1e-3)
        assert (job / "masks.safetensors").is_file() and not (job / "model").exists()
    assert "±" in (folder / "table.md").read_text()
    for name in ("plot", "bytes", "time"):
        assert (folder / f"{name}.png").is_file() and (folder / f"{name}.svg").is_file()
    page = (folder / "sweep.html").read_text()
    for row in table:
        label = f"sparsity={row['sparsity']},seed={row['seed']}"
        assert f'href="{quote(label)}/report.html"' in page
        assert (folder / label / "report.html").is_file()

    before = (folder / "table.csv").read_text()
    lost = folder / "sparsity=0.6,seed=0"
    (lost / "results.json").unlink()
    kept = (folder / "sparsity=0.3,seed=0" / "results.json").stat().st_mtime_ns
    assert main(command) == 0
    assert "3 of 4 jobs are done already" in capsys.readouterr().err
    assert (folder / "sparsity=0.3,seed=0" / "results.json").stat().st_mtime_ns == kept
    figures = [line.split(",")[:9] for line in before.splitlines()]
    after = (folder / "table.csv").read_text()
    assert [line.split(",")[:9] for line in after.splitlines()] == figures

    assert main([*command, "pruner.group=layer"]) == 2
    assert "another `pruner.group`" in capsys.readouterr().err
    assert (folder / "table.csv").read_text() == after


def test_a_failing_job_does_not_stop_the_others(user, short_model, capsys):
    (user / "short").mkdir()
    (user / "short" / "a.txt").write_text("Too short.\n")
    quick = [short_model, "strategy.wait=1", *SMALL, *ONE]
    command = ["sweep", "data=./short,stdlib", "output_dir=out", *quick]
    assert main(command) == 1
    shown = capsys.readouterr().err
    assert "failed: data=./short" in shown and "1 of 2 jobs failed" in shown
    assert len(list(csv.DictReader((user / "out" / "table.csv").open()))) == 1
    (failed,) = (path.parent for path in (user / "out").glob("*/failure.json"))
    (user / "mine.txt").write_text("precious")
    shutil.copy(user / "mine.txt", failed)
    assert main(command) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (failed / "mine.txt").read_text() == "precious"
