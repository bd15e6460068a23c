"""`python -m fedprune.cli` is a Hydra application: its folders, its multirun, others' plugins."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fedprune

SMALL = [
    *("pruner.num_calibration_samples=2", "pruner.seq_len=32", "evaluation.max_windows=2"),
    *("evaluation.local_only=false", "evaluation.centralized=false"),
]


def hydra(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(fedprune.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "fedprune.cli", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def needs(module: str) -> pytest.MarkDecorator:
    found = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not found, reason=f"needs {module.rpartition('.')[2]}")


def test_the_configuration_is_ours(tmp_path):
    done = hydra(tmp_path, "--cfg", "job", "strategy=fedspallm", "sparsity=0.6")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    assert found["strategy"]["name"] == "fedspallm" and found["sparsity"] == 0.6
    assert found["federation"]["backend"] == "inline"
    assert set(found) >= {"model", "data", "pruner", "schedule", "evaluation", "seed"}


def test_a_wrong_value_fails_with_our_message(tmp_path):
    done = hydra(tmp_path, "sparsity=2", "hydra.run.dir=out")
    assert done.returncode == 1
    assert "`sparsity` must be" in done.stderr
    done = hydra(tmp_path, "output_dir=x", "hydra.run.dir=out")
    assert done.returncode == 1
    assert "`output_dir` is chosen by Hydra here" in done.stderr


@pytest.mark.slow
def test_one_run_writes_where_hydra_says(tmp_path):
    done = hydra(tmp_path, *SMALL, "hydra.run.dir=mine")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "mine" / "results.json").read_text())["status"] == "completed"
    assert (tmp_path / "mine" / ".hydra" / "overrides.yaml").is_file()
    assert not (tmp_path / "runs").exists()
    assert done.stdout.count("taking part") + done.stderr.count("taking part") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "fedprune",
        "basic",
        pytest.param("joblib", marks=needs("hydra_plugins.hydra_joblib_launcher")),
    ],
)
def test_a_multirun_ends_with_a_table(tmp_path, launcher):
    plugin = {
        "fedprune": ["hydra.launcher.jobs=2"],
        "basic": ["hydra/launcher=basic"],
        "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    }[launcher]
    arguments = ["sparsity=0.3,0.6", "seed=0,1", *SMALL, "hydra.sweep.dir=out", *plugin]
    done = hydra(tmp_path, "--multirun", *arguments)
    assert done.returncode == 0, done.stderr
    assert "Perplexity (stdlib)" in done.stdout and "±" in done.stdout
    table = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [(row["sparsity"], row["seed"]) for row in table] == [
        *(("0.3", "0"), ("0.3", "1"), ("0.6", "0"), ("0.6", "1"))
    ]
    assert 'href="3/report.html"' in (tmp_path / "out" / "sweep.html").read_text()
    assert "\x1b" not in done.stderr
    if launcher == "fedprune":
        again = hydra(tmp_path, "--multirun", *arguments)
        assert again.returncode == 0 and "4 of 4 jobs are done already" in again.stderr


@pytest.mark.slow
def test_a_failing_job_of_our_launcher_stops_no_other(tmp_path):
    arguments = [*SMALL, "pruner.seq_len=100000,32", "hydra.sweep.dir=out"]
    done = hydra(tmp_path, "--multirun", *arguments)
    assert done.returncode == 1
    assert "job 1 of 2 failed" in done.stderr and "job 2 of 2 is done" in done.stderr
    assert len(list(csv.DictReader((tmp_path / "out" / "table.csv").open()))) == 1


@pytest.mark.slow
@needs("hydra_plugins.hydra_optuna_sweeper")
def test_a_sweeper_minimises_the_perplexity(tmp_path):
    optuna = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1"]
    arguments = ["sparsity=interval(0.1,0.7)", *SMALL, "hydra.sweep.dir=out", *optuna]
    done = hydra(tmp_path, "--multirun", *arguments)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load((tmp_path / "out" / "optimization_results.yaml").read_text())
    figures = [
        json.loads(path.read_text())["perplexity"]["stdlib"]["pruned"]
        for path in (tmp_path / "out").glob("*/results.json")
    ]
    assert len(figures) == 3 and found["best_value"] == min(figures)
