"""The private SuperLink with Flower's real runtime: the app's own code runs, nothing survives."""

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
from fedprune.flower.command import submit, wait
from fedprune.flower.superlink import private_superlink
from fedprune.flower.supervisor import MARK

pytestmark = pytest.mark.e2e

FEDERATION = {
    "num-supernodes": 2,
    "client-resources-num-cpus": 1,
    "client-resources-num-gpus": 0.0,
    "init-args-num-cpus": 1,
}
_PROJECT = """
[project]
name = "tiny-app"
version = "0.1.0"
license = "Apache-2.0"
dependencies = ["flwr[simulation]>=1.41.0,<1.42"]

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "server_app.app:app"
clientapp = "client_app.app:app"

[tool.flwr.app.config]
text = ""
then = ""
"""
_CLIENT = """
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("who")
def who(message: Message, context: Context) -> Message:
    return Message(RecordDict({"me": ConfigRecord({"file": __file__})}), reply_to=message)
"""
_SERVER = """
import os, pathlib, time
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


def say(*words: str) -> None:
    with pathlib.Path(os.environ["TINY_APP_JOURNAL"]).open("a") as journal:
        journal.write(" ".join(words) + "\\n")


@app.main()
def main(grid: Grid, context: Context) -> None:
    say("TEXT", repr(context.run_config["text"]))
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    requests = [Message(RecordDict(), node, "query.who") for node in nodes]
    for reply in grid.send_and_receive(requests, timeout=600):
        say("CLIENT", reply.content["me"]["file"])
    if context.run_config["then"] == "fail":
        raise RuntimeError("told to fail")
    if context.run_config["then"] == "sleep":
        say("ASLEEP")
        time.sleep(600)
"""
_USER = """
import pathlib, sys
from fedprune.flower.command import submit, wait
from fedprune.flower.superlink import private_superlink

with private_superlink(ray_cpus=int(sys.argv[2])) as connection:
    print("FOLDER", connection.folder.parent, flush=True)
    options = {"num-supernodes": 2, "client-resources-num-cpus": 1, "init-args-num-cpus": 1}
    run = submit(pathlib.Path(sys.argv[1]), connection, {"then": "sleep"}, options)
    wait(run, connection, lambda line: print(line, flush=True))
"""


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A small app, seen from a folder that holds another `client_app`, one that cannot load."""
    folder = tmp_path / "tiny-app"
    for name, text in (("client_app", _CLIENT), ("server_app", _SERVER)):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
        (folder / name / "app.py").write_text(text)
    (folder / "pyproject.toml").write_text(_PROJECT)
    # What the app says goes to a file: its order and time do not depend on Flower's log stream.
    monkeypatch.setenv("TINY_APP_JOURNAL", str(tmp_path / "journal"))
    other = tmp_path / "elsewhere" / "client_app"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('the wrong client_app')\n")
    monkeypatch.chdir(other.parent)
    return folder


def belonging(folder: Path) -> list[str]:
    """Return the command lines of living processes that work in, name or inherit ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            traces = [process.cwd(), *process.cmdline(), process.environ().get(MARK, "")]
        except (psutil.Error, OSError):
            continue
        if any(str(folder) in trace for trace in traces):
            found.append(" ".join(process.cmdline()) or process.name())
    return found


def journal() -> list[str]:
    """Return what the app has said so far, line by line."""
    path = Path(os.environ["TINY_APP_JOURNAL"])
    return path.read_text().splitlines() if path.exists() else []


def eventually(reached: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.1)
    return reached()


def test_runs_are_judged_right_and_use_the_app_s_own_code(app):
    text = 'it\'s "quoted"\nand has two lines'
    with private_superlink() as connection:
        folder = connection.folder.parent
        good = submit(app, connection, {"text": text}, FEDERATION)
        completed = wait(good, connection, lambda line: None)
        lines = journal()
        bad = submit(app, connection, {"then": "fail"}, FEDERATION)
        failed = wait(bad, connection, lambda line: None)
        assert belonging(folder)
    assert completed.completed
    assert failed.state == "finished:failed"
    assert "told to fail" in failed.details
    assert f"TEXT {text!r}" in lines
    files = [line.removeprefix("CLIENT ") for line in lines if line.startswith("CLIENT ")]
    assert len(files) == 2
    assert all(Path(file).is_relative_to(folder / "flwr" / "apps") for file in files)
    assert not belonging(folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("number", "ray_cpus"),
    [
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
        (signal.SIGKILL, 0),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_simulation_leaves_nothing(app, number, ray_cpus):
    command = [sys.executable, "-c", _USER, str(app), str(ray_cpus)]
    # The checkout on the path brings one more wrong `client_app`, the project's.
    path = {"PYTHONPATH": str(Path(fedprune.__file__).parents[1])}
    with subprocess.Popen(
        command, env=os.environ | path, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None
        folder = Path(next(user.stdout).split()[1])
        asleep = eventually(lambda: "ASLEEP" in journal(), seconds=600)
        own_code = any(f"CLIENT {folder}" in line for line in journal())
        simulated = any("raylet" in command for command in belonging(folder))
        # Judged only afterwards: leaving this block waits for the process.
        os.kill(user.pid, number if asleep else signal.SIGKILL)
        user.wait(180)
    assert asleep and own_code and simulated
    # The supervisor takes the folder away before it ends, and nobody waits for it here.
    assert eventually(lambda: not folder.exists() and not belonging(folder)), belonging(folder)
