"""The simulation inside this process."""

import sys

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import FLOWER_LOGGER, log
from flwr.supercore.task_identity import TaskIdentity

from fedprune.cli.inline import _output_to, run_inline
from fedprune.disk import home
from fedprune.flower.inline import InlineGrid
from fedprune.flower.messages import process_identity


def echo() -> ClientApp:
    app = ClientApp()

    @app.query("who")
    def who(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise ValueError("told to")
        return Message(RecordDict(), reply_to=message)

    return app


def test_every_node_answers_once_and_an_exception_is_an_error_reply():
    with process_identity(7):
        grid = InlineGrid(echo(), 2, 7)
        nodes = list(grid.get_node_ids())
        messages = [Message(RecordDict(), node, "query.who") for node in nodes]
        good, bad = identifiers = list(grid.push_messages(messages))
        (reply,) = grid.pull_messages([good])
        assert reply.has_content() and reply.metadata.src_node_id == nodes[0]
        assert reply.metadata.reply_to_message_id == good
        (failed,) = grid.pull_messages(identifiers)
        assert failed.error.reason == "ValueError: told to"
        assert list(grid.pull_messages([good, bad])) == []
    assert [context.node_config for context in grid.contexts] == [
        {"partition-id": 0, "num-partitions": 2},
        {"partition-id": 1, "num-partitions": 2},
    ]


def test_flower_s_identity_is_put_back():
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    with pytest.raises(KeyError), process_identity(5):
        assert TaskIdentity.run_id == 5
        raise KeyError
    assert (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id) == before


def test_all_output_becomes_lines():
    lines: list[str] = []
    handlers = FLOWER_LOGGER.handlers[:]
    with _output_to(lines.append):
        log(30, "late: %s\nsecond", "x")
        sys.stdout.write("prin")
        sys.stdout.write("ted\rbar\nrest")
        sys.stderr.write("more\n")
    assert lines == ["WARNING : late: x", "second", "printed", "bar", "restmore"]
    assert FLOWER_LOGGER.handlers == handlers


def test_failures_are_told_and_nothing_stays(tmp_path):
    lines: list[str] = []
    wrong = run_inline({"overrides": "sparsity=2"}, 2, lines.append)
    assert wrong.state == "finished:failed" and "`sparsity`" in wrong.details
    assert any("ConfigError" in line for line in lines)
    assert not list((home() / "nodes").glob("run-*/partition-*"))


def test_an_unexpected_failure_leaves_its_traceback_in_the_log(monkeypatch):
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("server_app.job.run_job", broken)
    lines: list[str] = []
    ended = run_inline({}, 1, lines.append)
    assert (ended.state, ended.details) == ("finished:failed", "ZeroDivisionError: oh")
    assert any("Traceback" in line for line in lines)


def test_an_interruption_is_passed_on(monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server_app.job.run_job", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_inline({}, 1, lambda line: None)
