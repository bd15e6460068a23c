"""The main job through Flower's real runtime: command line, by hand, deployed; good and bad."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedprune.cli.superlink import runtime_environment
from fedprune.models.export import SIDECAR
from tests.integration.test_main_job import job

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "pruner.num_calibration_samples=4",
    "pruner.seq_len=64",
    "evaluation.max_windows=8",
    "strategy.timeout=200",
]


def fedprune(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Type a fedprune command in a folder."""
    command = [sys.executable, "-m", "fedprune", *arguments]
    env = runtime_environment() | environment
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False
    )


def sidecar(folder: Path) -> bytes:
    return (folder / "model" / SIDECAR).read_bytes()


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> bytes:
    """The masks of the same job in one process."""
    return sidecar(job(tmp_path_factory.mktemp("inline") / "run", nodes=2))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_command_line_gives_the_masks_of_one_process(tmp_path, expected):
    done = fedprune(tmp_path, "run", *SMALL, "output_dir=out")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out"
    assert sidecar(folder) == expected
    assert "federated" in done.stdout and str(folder) in done.stdout
    results = json.loads((folder / "results.json").read_text())
    assert results["ledger"]["refused"] == {}


def test_failing_run_exits_with_1_and_says_why(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Not much.\n")
    done = fedprune(tmp_path, "run", *SMALL, f"data={short}", "output_dir=out")
    assert done.returncode == 1
    assert re.search(r"[01] of 2 nodes can take part", done.stderr), done.stderr
    assert "tokens" in done.stderr or "document" in done.stderr
    assert not (tmp_path / "out" / "model").exists()
    assert "of 2 nodes can" in json.loads((tmp_path / "out" / "failure.json").read_text())["reason"]


def test_wrong_configuration_exits_with_2_at_once(tmp_path):
    started = time.monotonic()
    done = fedprune(tmp_path, "run", "sparsty=0.6", "pruner.seq_len=zero")
    assert done.returncode == 2
    assert "Did you mean 'sparsity'" in done.stderr and "pruner.seq_len" in done.stderr
    assert not (tmp_path / "runs").exists()
    assert time.monotonic() - started < 30


def busy_workers(parent: int) -> list[int]:
    """Wait until a simulation's workers run a client, and return their process ids."""
    deadline = time.monotonic() + 120
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
        assert process.wait(200) == 1
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
            timeout=280,
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


@contextlib.contextmanager
def deployed(folder: Path, nodes: int) -> Iterator[dict[str, str]]:
    """A SuperLink and SuperNodes on the loopback interface, each node with its own cache."""
    port, logs = free_port(), folder / "logs"
    home = folder / "flwr"
    for made in (home, logs, folder / "neutral"):
        made.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "site"\n\n[superlink.site]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    env = runtime_environment() | {"FLWR_HOME": str(home), "FEDPRUNE_TEST": str(folder)}
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    commands = [[*link, "--disable-runtime-dependency-installation"]]
    for partition in range(nodes):
        commands.append(
            ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
            + ["--host", "127.0.0.1", "--port", str(free_port()), "--node-config"]
            + [f'partition-id={partition} num-partitions={nodes} site="site-{partition}"']
        )
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((logs / f"{number}.log").open("wb"))
            own = env | {"FEDPRUNE_HOME": str(folder / f"cache-{number}")}
            process = subprocess.Popen(
                command, cwd=folder / "neutral", env=own, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            if number == 0:
                wait_for_port(port)
        stack.callback(end_processes_with, "FEDPRUNE_TEST", str(folder))
        yield env


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens on port {port}")


def test_deployed_nodes_give_the_masks_of_the_simulation(tmp_path, expected):
    with deployed(tmp_path, 2) as env:
        done = fedprune(
            tmp_path,
            "run",
            *SMALL,
            "federation.connection=site",
            "schedule.blocks_per_message=3",
            f"output_dir={tmp_path / 'out'}",
            FLWR_HOME=env["FLWR_HOME"],
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert sidecar(tmp_path / "out") == expected
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [client["name"] for client in results["clients"]] == [
        "'site-0' (partition 0)",
        "'site-1' (partition 1)",
    ]
    rounds = [e["round"] for e in results["ledger"]["entries"] if e["phase"] == "prune"]
    assert sorted(rounds) == [1, 1, 2, 2]
    for cache in tmp_path.glob("cache-*"):
        assert not list(cache.glob("nodes/run-*/partition-*"))
    logs = "".join(path.read_text(errors="replace") for path in (tmp_path / "logs").iterdir())
    assert not re.search(r"Traceback", logs)
