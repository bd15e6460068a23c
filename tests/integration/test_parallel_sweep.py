"""A sweep's jobs side by side: the same results, and nothing lost or left when something dies."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import fedprune
from fedprune.cli import main

pytestmark = pytest.mark.slow

TWO = ["--jobs", "2"]
SMALL = ["pruner.num_calibration_samples=2", "pruner.seq_len=32", "evaluation.max_windows=4"]
# Long enough to be met in the middle: six blocks, one after another.
LONG = [
    *("strategy=fedspallm", "schedule=iterative", "pruner.num_calibration_samples=96"),
    *("evaluation.max_windows=2", "evaluation.local_only=false", "evaluation.centralized=false"),
]
COMMAND = ["sweep", "seed=0,1,2", "output_dir=out", *LONG, *TWO]


def test_the_results_are_those_of_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("Too short.\n")
    command = ["sweep", "data=stdlib,./short.txt", "seed=0,1", "strategy.wait=1", *SMALL]
    assert main([*command, "output_dir=two", *TWO]) == 1
    shown = capsys.readouterr().err
    assert "2 of 4 jobs failed" in shown and shown.count("failed: data=./short.txt") == 2
    assert "\x1b" not in shown
    assert main([*command, "output_dir=one", "--jobs", "1"]) == 1
    for seed in (0, 1):
        one, two = (tmp_path / name / f"data=stdlib,seed={seed}" for name in ("one", "two"))
        assert (one / "masks.safetensors").read_bytes() == (two / "masks.safetensors").read_bytes()
        first, second = (json.loads((f / "results.json").read_text()) for f in (one, two))
        for model in ("dense", "pruned", "centralized"):
            expected = first["perplexity"]["stdlib"][model]
            assert second["perplexity"]["stdlib"][model] == pytest.approx(expected, rel=1e-4)


def start(folder: Path) -> subprocess.Popen[str]:
    """Start the long sweep as a process of its own, as a terminal does."""
    environment = os.environ | {"PYTHONPATH": str(Path(fedprune.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "fedprune", *COMMAND],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def eventually(reached: Callable[[], bool], seconds: float = 240) -> bool:
    deadline = time.monotonic() + seconds
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.05)
    return reached()


def pruning(folder: Path) -> bool:
    """Whether two jobs have each aggregated a block."""
    return len({path.parents[2] for path in folder.glob("out/*/blocks/*/block-*")}) == 2


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes of the jobs, all forked from one that has loaded torch."""
    children = psutil.Process(process.pid).children(recursive=True)
    found = [child for child in children if "forkserver" in " ".join(child.cmdline())]
    return [child for child in found if child.ppid() != process.pid]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_leaves_no_process_and_goes_on(tmp_path, number):
    with start(tmp_path) as process:
        assert eventually(lambda: pruning(tmp_path)), process.communicate()
        everyone = workers(process)
        # As from a terminal, Ctrl-C reaches all of the group; a kill only the sweep itself.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in said
    assert ("goes on from here" in said) is (number == signal.SIGINT)
    assert len(everyone) == 2
    assert eventually(lambda: not any(worker.is_running() for worker in everyone), 60)
    with start(tmp_path) as again:
        said, _ = again.communicate(timeout=280)
    assert again.returncode == 0, said
    assert said.count(" goes on: ") == 2
    assert len(list(csv.DictReader((tmp_path / "out" / "table.csv").open()))) == 3


def test_a_killed_worker_costs_one_job(tmp_path):
    with start(tmp_path) as process:
        assert eventually(lambda: pruning(tmp_path)), process.communicate()
        workers(process)[0].kill()
        said, _ = process.communicate(timeout=280)
    assert process.returncode == 1
    assert "its process was killed" in said and "lower --jobs" in said
    assert "1 of 3 jobs failed" in said
    assert len(list(csv.DictReader((tmp_path / "out" / "table.csv").open()))) == 2
