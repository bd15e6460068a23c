"""Runs are submitted, followed and judged through a `flwr` that is a real process."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from fedprune.flower import command
from fedprune.flower.command import RunStatus, RuntimeFailure, status, stop, submit, wait
from tests.support.flower import FakeFlwr, listed, said

RUN = "17891728690812940418"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(command, "_RETRIES", 3)


def send(flwr: FakeFlwr, overrides: str = "") -> str:
    return submit(Path("/app"), flwr.connection, {"overrides": overrides}, {})


def test_submit_returns_the_run_id_and_passes_the_federation(flwr: FakeFlwr) -> None:
    flwr.answers(run=[said(success=True, **{"run-id": RUN})])
    federation = {"num-supernodes": 8, "client-resources-num-gpus": 0.25}
    assert submit(Path("/app"), flwr.connection, {"seed": 3}, federation) == RUN
    (call,) = flwr.calls("run")
    assert call[:3] == ["run", "/app", "fake"]
    chosen = call[call.index("--federation-config") + 1]
    assert chosen == "num-supernodes=8 client-resources-num-gpus=0.25"
    assert call[-2:] == ["--format", "json"]


def test_the_size_of_a_ray_that_runs_already_is_not_asked_for(flwr: FakeFlwr) -> None:
    flwr.answers(run=[said(success=True, **{"run-id": RUN})])
    federation = {"num-supernodes": 8, "init-args-num-cpus": 2}
    submit(Path("/app"), dataclasses.replace(flwr.connection, has_ray=True), {}, federation)
    call = flwr.calls("run")[0]
    assert call[call.index("--federation-config") + 1] == "num-supernodes=8"


def test_a_deployment_gets_no_federation_config(flwr: FakeFlwr) -> None:
    flwr.answers(run=[said(success=True, **{"run-id": RUN})])
    send(flwr)
    assert "--federation-config" not in flwr.calls("run")[0]


@pytest.mark.parametrize(
    "text",
    [
        "sparsity=0.6 'data.text_key=a b'",
        "x='it''s' y=\"q\" z=\\\\server\\share",
        "two\nlines\tand a tab",
        "ünïcode = [1, 2]",
        "'''\"\"\"",
    ],
)
def test_any_text_arrives_in_the_run_config(flwr: FakeFlwr, text: str) -> None:
    flwr.answers(run=[said(success=True, **{"run-id": RUN})])
    send(flwr, text)
    assert tomllib.loads(flwr.run_config()) == {"overrides": text}


@pytest.mark.parametrize(
    "answer",
    [
        {"out": '{"success": false, "error-message": "[code: 15] Invalid run configuration."}'},
        {"out": '{"success": true}', "err": "[code: 15] Invalid run configuration.", "code": 1},
        {"out": "[code: 15] Invalid run configuration."},
        {"out": "{broken", "err": "[code: 15] Invalid run configuration."},
    ],
)
def test_a_refused_run_is_a_failure_whatever_the_exit_code(
    flwr: FakeFlwr, answer: dict[str, object]
) -> None:
    flwr.answers(run=[answer])
    with pytest.raises(RuntimeFailure, match="Invalid run configuration") as caught:
        send(flwr)
    assert "Invalid run configuration" in caught.value.details


def test_a_run_without_an_id_is_a_failure(flwr: FakeFlwr) -> None:
    flwr.answers(run=[said(success=True, **{"run-id": None})])
    with pytest.raises(RuntimeFailure, match="no id"):
        send(flwr)


def test_json_is_found_between_warnings_and_colours_are_dropped(flwr: FakeFlwr) -> None:
    answer = '{"success": false, "error-message": "\\u001b[91mno\\u001b[0m"}'
    flwr.answers(run=[{"out": f"a warning\n{answer}\nanother"}])
    with pytest.raises(RuntimeFailure) as caught:
        send(flwr)
    assert caught.value.details == "no"


def test_a_missing_flwr_says_what_to_do(flwr: FakeFlwr) -> None:
    (flwr.folder / "flwr").unlink()
    connection = flwr.connection
    alone = {**connection.environment, "PATH": str(flwr.folder)}
    with pytest.raises(RuntimeFailure, match="make install"):
        status(RUN, command.Connection("fake", alone, flwr.folder))


@pytest.mark.parametrize(
    ("answer", "expected", "finished", "completed"),
    [
        (listed("pending"), RunStatus("pending"), False, False),
        (listed("running"), RunStatus("running"), False, False),
        (listed("finished:completed"), RunStatus("finished:completed"), True, True),
        (listed("finished:failed", "boom"), RunStatus("finished:failed", "boom"), True, False),
        (listed("finished:stopped", ""), RunStatus("finished:stopped"), True, False),
    ],
)
def test_status(
    flwr: FakeFlwr,
    answer: dict[str, object],
    expected: RunStatus,
    finished: bool,
    completed: bool,
) -> None:
    flwr.answers(list=[answer])
    found = status(RUN, flwr.connection)
    assert found == expected
    assert (found.finished, found.completed) == (finished, completed)
    assert flwr.calls("list") == [["list", "--run-id", RUN, "fake", "--format", "json"]]


def test_an_unknown_run_is_a_failure(flwr: FakeFlwr) -> None:
    flwr.answers(list=[said(success=True, runs=[])])
    with pytest.raises(RuntimeFailure, match=RUN):
        status(RUN, flwr.connection)


def test_stop(flwr: FakeFlwr) -> None:
    flwr.answers(stop=[said(success=True)])
    stop(RUN, flwr.connection)
    assert flwr.calls("stop") == [["stop", RUN, "fake", "--format", "json"]]


def test_wait_hands_on_every_line_without_colours(flwr: FakeFlwr) -> None:
    log = {"out": "\x1b[92mINFO \x1b[0m:      one\r\n\ntwo\n", "err": "not a line of the log\n"}
    flwr.answers(log=[log], list=[listed("finished:completed")])
    lines: list[str] = []
    assert wait(RUN, flwr.connection, lines.append).completed
    assert lines == ["INFO :      one", "", "two"]


def test_a_log_that_breaks_off_is_taken_up_where_it_ended(flwr: FakeFlwr) -> None:
    flwr.answers(
        log=[
            {"out": "a\nb\nhal", "code": 1},
            {"out": "", "code": 1},
            {"out": "a\nb\nhalf\nc\n"},
        ],
        list=[listed("running"), listed("running"), listed("finished:failed", "boom")],
    )
    lines: list[str] = []
    assert wait(RUN, flwr.connection, lines.append) == RunStatus("finished:failed", "boom")
    assert lines == ["a", "b", "half", "c"]


def test_a_superlink_that_is_away_for_a_moment_is_waited_for(flwr: FakeFlwr) -> None:
    away = {"err": "connection refused", "code": 1}
    flwr.answers(log=[away], list=[away, away, listed("running"), away, away, listed("finished")])
    wait(RUN, flwr.connection, lambda line: None)
    assert len(flwr.calls("list")) == 6


def test_a_superlink_that_stays_away_is_a_failure(flwr: FakeFlwr) -> None:
    away = {"err": "connection refused", "code": 1}
    flwr.answers(log=[away], list=[away])
    with pytest.raises(RuntimeFailure, match="connection refused"):
        wait(RUN, flwr.connection, lambda line: None)
    assert len(flwr.calls("list")) == 3


@pytest.mark.parametrize("answer", [said(success=True), {"err": "already finished", "code": 1}])
def test_ctrl_c_stops_the_run(flwr: FakeFlwr, answer: dict[str, object]) -> None:
    flwr.answers(log=[{"out": "a\n"}], stop=[answer])

    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait(RUN, flwr.connection, interrupted)
    assert len(flwr.calls("stop")) == 1
