"""The main job through Flower's real runtime: by command line and by hand; good and bad."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedprune.cli import main
from fedprune.flower.superlink import runtime_environment
from fedprune.models.export import SIDECAR
from fedprune.models.sidecar import read_sidecar
from tests.support.services import free_port

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "pruner.num_calibration_samples=4",
    "pruner.seq_len=64",
    "evaluation.max_windows=8",
    "strategy.timeout=600",
]
MOMENTS = ["strategy=fedhessian", "pruner=sparsegpt", "schedule=iterative", "allocation=owl"]
# Flower's numbers of run, nodes and tasks are random, each one byte longer in half of the runs.
_NUMBERS = 5


def fedprune(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Type a fedprune command in a folder."""
    command = [sys.executable, "-m", "fedprune", *arguments]
    env = runtime_environment() | environment
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False
    )


def sidecar(folder: Path) -> bytes:
    return (folder / "model" / SIDECAR).read_bytes()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A run by the command line, and its folder."""
    base = tmp_path_factory.mktemp("simulated")
    return fedprune(base, "run", *SMALL, "output_dir=out"), base / "out"


def test_command_line_gives_the_masks_of_one_process(simulated, expected):
    done, folder = simulated
    assert done.returncode == 0, done.stderr
    assert sidecar(folder) == expected
    assert "federated" in done.stdout and str(folder) in done.stdout
    results = json.loads((folder / "results.json").read_text())
    assert results["ledger"]["refused"] == {}


def test_backends_agree(simulated, tmp_path, monkeypatch):
    same_result(simulated[1], inline(tmp_path, monkeypatch))


@pytest.mark.slow
def test_backends_agree_on_moments(tmp_path, monkeypatch):
    done = fedprune(tmp_path, "run", *SMALL, *MOMENTS, "output_dir=out")
    assert done.returncode == 0, done.stderr
    same_result(tmp_path / "out", inline(tmp_path, monkeypatch, *MOMENTS))


def inline(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    """Run the job in this process and return its folder."""
    monkeypatch.chdir(folder)
    words = [*SMALL, *options, "federation.backend=inline", "output_dir=inline"]
    assert main(["run", *words]) == 0
    return folder / "inline"


def same_result(ray: Path, inline: Path) -> None:
    """Check that Flower's simulation and the one process gave equal masks and sent equal bytes."""

    def masks(folder: Path) -> dict[tuple[int, str], bytes]:
        found = read_sidecar(folder / "model" / SIDECAR)
        return {(b, n): m.bits.tobytes() for b, own in found.items() for n, m in own.items()}

    def weights(folder: Path) -> bytes:
        return (folder / "model" / "model.safetensors").read_bytes()

    assert masks(ray) == masks(inline)
    assert weights(ray) == weights(inline)
    theirs, ours = (json.loads((f / "results.json").read_text()) for f in (ray, inline))
    for key in ("perplexity", "agreement"):
        assert theirs[key] == ours[key]
    # The configuration travels in every request, and names backend and folder.
    longer = len("inline") - len("ray") + len(str(inline)) - len(str(ray))
    entries = [
        sorted(one["ledger"]["entries"], key=lambda e: (e["round"], e["phase"], e["client"]))
        for one in (theirs, ours)
    ]
    for their, our in zip(*entries, strict=True):
        assert their["client"] == our["client"]
        assert abs(our["bytes_up"] - their["bytes_up"]) <= _NUMBERS
        assert abs(our["bytes_down"] - longer - their["bytes_down"]) <= _NUMBERS


@pytest.mark.slow
def test_failing_run_exits_with_1_and_says_why(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Not much.\n")
    alone = ["federation.num_clients=1", "strategy.min_clients=1"]
    done = fedprune(tmp_path, "run", *SMALL, *alone, f"data={short}", "output_dir=out")
    assert done.returncode == 1
    assert "0 of 1 nodes can take part" in done.stderr, done.stderr
    assert "tokens" in done.stderr
    assert not (tmp_path / "out" / "model").exists()
    assert "of 1 nodes can" in json.loads((tmp_path / "out" / "failure.json").read_text())["reason"]


def busy_workers(parent: int) -> list[int]:
    """Wait until a simulation's workers run a client, and return their process ids."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        found = []
        for child in psutil.Process(parent).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ClientAppActor.run" in " ".join(child.cmdline()):
                    found.append(child.pid)
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("no worker ever ran a client")


@pytest.mark.slow
def test_killed_worker_ends_the_run_with_1(tmp_path):
    """Flower never replaces a dead worker and lets it swallow messages for ever."""
    command = [sys.executable, "-m", "fedprune", "run", *SMALL, "output_dir=out"]
    big = ["pruner.num_calibration_samples=64", "pruner.seq_len=512", "federation.num_clients=8"]
    process = subprocess.Popen(
        [*command, *big], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=runtime_environment()
    )
    with process:
        for worker in busy_workers(process.pid):
            os.kill(worker, signal.SIGKILL)
        rest = process.stderr.read()
        assert process.wait(900) == 1
    assert "worker died" in rest
    assert not (tmp_path / "out" / "model").exists()


def test_flwr_run_by_hand_does_the_same_job(tmp_path, expected):
    """Also from inside the checkout, where Flower's daemon sees the sources twice."""
    env = runtime_environment() | {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
    }
    overrides = " ".join([*SMALL[:3], "evaluation.local_only=false"])
    config = f"overrides=\"{overrides}\" sparsity=0.5 output-dir='{tmp_path / 'out'}'"
    try:
        done = subprocess.run(
            ["flwr", "run", ".", "--stream", "--run-config", config],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    finally:
        end_processes_with("FLWR_HOME", str(tmp_path / "flwr"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sidecar(tmp_path / "out") == expected


def end_processes_with(name: str, value: str) -> None:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value:
                process.kill()
