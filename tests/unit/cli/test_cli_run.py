"""`fedprune run` with a fake Flower: what is shown, what is kept, and the exit code."""

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fedprune.cli import main, run
from fedprune.cli.job import LogReader
from fedprune.cli.run import run_job
from fedprune.errors import ConfigError
from fedprune.flower import command
from fedprune.flower.command import Connection, RunStatus
from fedprune.results.progress import Progress
from tests.support.flower import listed, said

RESULTS = {
    "method": {"strategy": "fedprllm", "pruner": "wanda"},
    "sparsity": {"overall": 0.5, "weights": 1000},
    "perplexity": {"stdlib": {"dense": 40.25, "pruned": 55.5}},
    "agreement": {"pairwise": 0.9},
    "clients": [{}, {}],
    "seconds": {"total": 12.0},
    "ledger": {
        "refused": {},
        "bytes_up": 125_000,
        "bytes_down": 900,
        "of_dense": {"share_of_dense": 0.032, "bits_per_weight": 1.01},
    },
}
ACCEPTED = said(success=True, **{"run-id": "7"})
DONE = listed("finished:completed")


@pytest.fixture
def user(flwr, tmp_path, monkeypatch):
    """A user in a folder of their own; the private SuperLink is the fake Flower."""
    (flwr.folder / "superlink.log").write_text("died: no space left\n")
    connection = dataclasses.replace(flwr.connection, log=flwr.folder / "superlink.log")

    @contextlib.contextmanager
    def private(ray_cpus: int) -> Iterator[Connection]:
        yield connection

    monkeypatch.setattr(run, "private_superlink", private)
    monkeypatch.setattr(run, "named_connection", lambda name: connection)
    monkeypatch.setattr(command, "_RETRY_SECONDS", 0.0)
    home = tmp_path / "user"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


def only_run(user: Path) -> Path:
    (folder,) = (user / "runs").iterdir()
    return folder


def test_a_completed_run_ends_with_the_table_and_the_path(flwr, user, capsys):
    line = Progress("prune", 1, 2, ("block 1 of 2",)).line()
    folder = user / "mine"
    log = {
        "out": f"\x1b[92mINFO \x1b[0m: {line}\nWARNING : a node is late\n",
        "files": {str(folder / "results.json"): json.dumps(RESULTS)},
    }
    flwr.answers(run=[ACCEPTED], log=[log], list=[DONE])
    assert run_job(["output_dir=mine"]) == 0
    shown = capsys.readouterr()
    assert "55.50" in shown.out
    assert shown.out.splitlines()[-1] == str(folder)
    assert "block 1 of 2" not in shown.err  # that is in the status file of a run
    assert "warning: a node is late" in shown.err
    first, rest = (folder / "run.log").read_text().split("\n", 1)
    assert first.startswith("INFO : ") and "simulated clients at a time" in first
    assert rest == f"INFO : {line}\nWARNING : a node is late\n"
    assert not (folder / "superlink.log").exists()


def test_a_failed_run_says_why_and_where_the_logs_are(flwr, user, capsys):
    lines = "".join(f"line {number}\n" for number in range(100))
    flwr.answers(
        run=[ACCEPTED], log=[{"out": lines}], list=[listed("finished:failed", "[1 of 2] answered")]
    )
    assert run_job([]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "The run failed. [1 of 2] answered" in shown.err
    assert "line 99" in shown.err and "line 79" not in shown.err
    assert f"Logs: {only_run(user)}" in shown.err
    assert (only_run(user) / "run.log").read_text().endswith(f"\n{lines}")
    assert (only_run(user) / "superlink.log").read_text() == "died: no space left\n"


def test_a_reason_that_the_server_left_is_told_without_the_log(flwr, user, capsys, monkeypatch):
    def leave_reason(run_id, connection, take):
        take("a traceback")
        failure = json.dumps({"status": "failed", "reason": "too few clients"})
        (only_run(user) / "failure.json").write_text(failure)
        return RunStatus("finished:failed", "Simulation failed with exception: too few clients")

    flwr.answers(run=[ACCEPTED])
    monkeypatch.setattr("fedprune.cli.job.wait", leave_reason)
    assert run_job([]) == 1
    shown = capsys.readouterr().err
    assert "The run failed. too few clients" in shown
    assert "traceback" not in shown and "Simulation" not in shown


@pytest.mark.parametrize(
    ("details", "told"),
    [("No heartbeat received from the task", 1), ("ServerApp failed with exception: why", 0)],
)
def test_how_to_go_on_with_a_deployment_s_run(flwr, user, capsys, details, told):
    flwr.answers(run=[ACCEPTED], log=[{"out": ""}], list=[listed("finished:failed", details)])
    assert run_job(["federation.connection=site"]) == 1
    way = "fedprune run resume=FOLDER federation.connection=site"
    assert capsys.readouterr().err.count(way) == told


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"list": [listed("finished:stopped")]}, "The run was stopped."),
        ({"run": [said(success=False, **{"error-message": "[code: 15] Invalid"})]}, "] Invalid"),
        ({"list": [DONE]}, "results.json"),
    ],
    ids=["stopped", "refused", "without results"],
)
def test_what_is_no_success_is_told(flwr, user, capsys, answers, told):
    flwr.answers(**{"run": [ACCEPTED], "log": [{}]} | answers)
    assert run_job([]) == 1
    assert told in capsys.readouterr().err


def test_ctrl_c_stops_the_run(flwr, user, monkeypatch, capsys):
    def interrupted(reader: LogReader, line: str) -> None:
        if line == "x":
            raise KeyboardInterrupt

    monkeypatch.setattr(LogReader, "take", interrupted)
    flwr.answers(run=[ACCEPTED], log=[{"out": "x\n"}], stop=[said(success=True)])
    assert run_job([]) == 130
    assert len(flwr.calls("stop")) == 1
    assert "stopped" in capsys.readouterr().err


def test_a_deployment_s_results_stay_where_they_are(flwr, user, capsys):
    done = Progress("done", 1, 1, ("/srv/results/7",)).line()
    flwr.answers(run=[ACCEPTED], log=[{"out": f"INFO : {done}\n"}], list=[DONE])
    assert run_job(["federation.connection=fake"]) == 0
    assert "SuperLink's machine, in /srv/results/7" in capsys.readouterr().out
    assert "--federation-config" not in flwr.calls("run")[0]


def test_a_wrong_configuration_starts_nothing(flwr, user):
    with pytest.raises(ConfigError, match="sparsity"):
        run_job(["sparsity=1.5"])
    assert not list(user.iterdir())
    assert not (flwr.folder / "calls.jsonl").exists()


def test_another_run_s_folder_is_left_alone(flwr, user):
    (user / "mine").mkdir()
    (user / "mine" / "run.log").write_text("precious")
    (user / "mine" / "config.yaml").write_text("precious")
    with pytest.raises(ConfigError, match=r"`output_dir` must be a new or empty folder"):
        run_job(["output_dir=mine"])
    assert (user / "mine" / "run.log").read_text() == "precious"


def test_what_a_run_leaves_that_was_stopped_at_once_counts_as_nothing(flwr, user, capsys):
    for folder in ("state", "blocks"):
        (user / "mine" / folder).mkdir(parents=True)
    (user / "mine" / "run.log").write_text("loading\n")
    with pytest.raises(ConfigError, match="ended before it had begun.*the same command"):
        run_job(["resume=mine"])
    flwr.answers(run=[ACCEPTED], log=[{}], list=[listed("finished:failed", "why")])
    assert run_job(["output_dir=mine"]) == 1
    failure = json.loads((user / "mine" / "failure.json").read_text())
    assert failure == {"status": "failed", "reason": "why"}


def test_no_text_of_others_is_markup(flwr, user, capsys):
    details = "node Klinik [/Nord] said [red]no[/red]\x1b[2J"
    flwr.answers(run=[ACCEPTED], log=[{}], list=[listed("finished:failed", details)])
    assert run_job(["output_dir=[a]"]) == 1
    shown = capsys.readouterr().err
    assert "The run failed. node Klinik [/Nord] said [red]no[/red]\ufffd[2J" in shown
    assert f"Logs: {user / '[a]'}" in shown


def test_sigterm_ends_a_run_with_a_word(flwr, user, monkeypatch, capsys):
    def terminated(reader: LogReader, line: str) -> None:
        if line == "x":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LogReader, "take", terminated)
    flwr.answers(run=[ACCEPTED], log=[{"out": "x\n"}], stop=[said(success=True)])
    assert main(["run"]) == 130
    assert len(flwr.calls("stop")) == 1
    assert "Interrupted; the run is stopped" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_folder_that_cannot_be_made_is_refused(flwr, user):
    (user / "file").write_text("")
    with pytest.raises(ConfigError, match=r"`output_dir` must be a folder that can be written"):
        run_job(["output_dir=file/below"])


class Recorder:
    """A view that remembers."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def stage(self, text: str) -> None:
        self.seen.append(text)

    def note(self, text: str) -> None:
        self.seen.append(text)


@pytest.mark.parametrize(
    ("line", "remote", "local"),
    [
        ("INFO :      starting", [], None),
        ("  WARNING : inside a traceback", [], None),
        ("WARNING :   a node is late", ["warning: a node is late"], None),
        (
            "ERROR :     a node failed: ERROR : x",
            ["error: a node failed: ERROR : x"],
            ["error: a node failed: ERROR : x"],
        ),
        (
            "WARNING :   Since flwr 1.32, default simulated SuperNodes changed from 10 to 2.",
            [],
            None,
        ),
        (f"INFO : {Progress('prune', 1, 2, ('x',)).line()}", ["pruning 1/2 · x"], []),
        (f"INFO : {Progress('done', 1, 1, ('/x',)).line()}", [], None),
    ],
)
def test_only_trouble_is_shown_and_the_course_of_a_run_elsewhere(tmp_path, line, remote, local):
    for elsewhere, expected in ((True, remote), (False, remote if local is None else local)):
        view = Recorder()
        with (tmp_path / "run.log").open("w") as file:
            reader = LogReader(file, view, remote=elsewhere)  # type: ignore[arg-type]
            reader.take(line)
        assert view.seen == expected
        assert (tmp_path / "run.log").read_text() == f"{line}\n"
        assert reader.tail() == line


def test_the_table_is_the_run_s(capsys):
    Console().print(run.render(RESULTS))
    shown = capsys.readouterr().out
    assert "dense" in shown and "40.25" in shown and "125.0 kB up" in shown
