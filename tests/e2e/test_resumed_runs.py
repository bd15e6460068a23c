"""Processes of Flower's real runtime are killed with SIGKILL; the run goes on to the same bytes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import fedprune
from fedprune.cli import main
from tests.support.faults import chunks_done

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SMALL = (
    "pruner.num_calibration_samples=2",
    "pruner.seq_len=32",
    "evaluation.max_windows=2",
    "evaluation.centralized=false",
    "schedule=iterative",
    "federation.num_clients=2",
    "strategy.min_clients=2",
)
_SECONDS = 180.0


def find(user: psutil.Process, name: str) -> psutil.Process:
    """Return a process that a command has started, by its command line."""
    for process in user.children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    raise LookupError(name)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "model").rglob("*.safetensors")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["run", *SMALL, "federation.backend=inline", f"output_dir={folder}"]) == 0
    return folder


@pytest.mark.parametrize("victim", ["flwr-simulation", "ray::ClientAppActor"])
def test_a_run_whose_process_is_killed_goes_on(tmp_path, whole, victim):
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    command = [sys.executable, "-m", "fedprune", "run", *SMALL, f"output_dir={folder}"]
    path = {"PYTHONPATH": str(Path(fedprune.__file__).parents[1])}
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=tmp_path, env=os.environ | path, stderr=file) as user,
    ):
        deadline = time.monotonic() + _SECONDS
        while not chunks_done(folder) and user.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        find(psutil.Process(user.pid), victim).kill()
        assert user.wait(_SECONDS) == 1
    assert f"fedprune run resume={folder}" in " ".join(log.read_text().split())
    assert 0 < chunks_done(folder) < 6
    assert main(["run", f"resume={folder}"]) == 0
    assert bytes_of(folder) == bytes_of(whole)
