"""Logs in JSON, and what is never in any."""

import io
import json
import logging
import sys
from hashlib import sha256

import pytest

from fedprune import logs
from fedprune.errors import DataError
from fedprune.logs import JsonFormatter, bound, job_mark, note, read_line, set_up


@pytest.fixture
def flower():
    """Flower's logger as a process that has just started has it, and the root's, put back later."""
    loggers = [logging.getLogger(), logging.getLogger("flwr"), logging.getLogger("some.library")]
    kept = [(one, one.handlers[:], one.filters[:], one.propagate, one.level) for one in loggers]
    flower = loggers[1]
    flower.handlers[:], flower.filters[:] = [logging.StreamHandler(sys.stdout)], []
    flower.handlers[0].setLevel(logging.INFO)
    token = logs._place.set({})
    yield flower
    logs._place.reset(token)
    logging.captureWarnings(False)
    for one, handlers, filters, propagate, level in kept:
        one.handlers[:], one.filters[:] = handlers, filters
        one.propagate = propagate
        one.setLevel(level)


@pytest.fixture
def said(capsys):
    """Return a function that returns the lines on standard error since its last call."""
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def failing(logger, error):
    try:
        raise error
    except type(error):
        logger.exception("it failed")


def test_a_line_says_where_it_comes_from(flower, said, monkeypatch):
    monkeypatch.setenv("FEDPRUNE_LOG", "json")
    set_up("client")
    set_up("client")
    with bound(run=7, job=job_mark("ab" * 16)):
        note(node="'north' (partition 1)", block=3)
        flower.warning("half\nof %d", 2)
    flower.debug("not shown")
    flower.info("after", extra={"node": "somebody"})
    first, second = said()
    assert list(first) == "time level logger role run job node block message".split()
    assert first["time"].endswith("Z") and first["time"][19] == "."
    assert first | {"time": ""} == {
        "time": "",
        "level": "WARNING",
        "logger": "flwr",
        "role": "client",
        "run": 7,
        "job": sha256(b"ab" * 16).hexdigest()[:8],
        "node": "'north' (partition 1)",
        "block": 3,
        "message": "half\nof 2",
    }
    assert second["node"] == "somebody" and "run" not in second and second["role"] == "client"


def test_libraries_and_warnings_go_the_same_way(flower, said, monkeypatch):
    library = logging.getLogger("some.library")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    monkeypatch.setenv("FEDPRUNE_LOG", "JSON")
    set_up("server")
    library.warning("an odd file")
    logging.getLogger("py.warnings").warning("old")
    assert [(one["logger"], one["message"]) for one in said()] == [
        ("some.library", "an odd file"),
        ("py.warnings", "old"),
    ]


@pytest.mark.parametrize("role", ["client", "server"])
def test_json_never_has_what_a_foreign_exception_says(flower, said, monkeypatch, role):
    monkeypatch.setenv("FEDPRUNE_LOG", "json")
    set_up(role)
    failing(flower, ValueError("Mrs Smith"))
    failing(flower, DataError("12 tokens found"))
    foreign, ours = said()
    assert "Smith" not in json.dumps(foreign)
    (cause,) = foreign["error"]
    assert cause["type"] == "ValueError" and cause["at"][-1].startswith(f"{__name__}:")
    assert ours["text"] == "12 tokens found" and ours["error"][0]["type"] == "DataError"
    monkeypatch.setenv("FEDPRUNE_DEBUG", "1")
    failing(flower, ValueError("Mrs Smith"))
    assert "Mrs Smith" in said()[-1]["traceback"]


def test_text_of_a_client_has_it_neither(flower, monkeypatch):
    stream = io.StringIO()
    flower.handlers[:] = [logging.StreamHandler(stream)]
    monkeypatch.delenv("FEDPRUNE_LOG", raising=False)
    set_up("client")
    failing(flower, ValueError("Mrs Smith"))
    try:
        try:
            raise ValueError("Mr Smith")
        except ValueError as error:
            raise DataError("12 tokens found") from error
    except DataError as error:
        flower.error("no %s", "luck", exc_info=error)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith(f"it failed: ValueError at {__name__}:")
    assert lines[1:] == ["no luck: DataError: 12 tokens found"]
    with bound(role="server"):
        failing(flower, ValueError("a server's own"))
    assert "a server's own" in stream.getvalue()


def test_an_unknown_format_is_told(flower, monkeypatch, caplog):
    monkeypatch.setenv("FEDPRUNE_LOG", "xml")
    set_up("server")
    assert "`FEDPRUNE_LOG` must be 'json' or 'text', got 'xml'" in caplog.text


def test_a_line_is_read_back_and_steers_no_terminal():
    record = logging.LogRecord("flwr", logging.INFO, "", 0, "a \x1b[2J \u202e·", None, None)
    line = JsonFormatter().format(record)
    assert line.isascii() and line.isprintable()
    assert read_line(line) == ("INFO", "a \x1b[2J \u202e·")
    assert read_line(f"(ClientAppActor pid=12) {line}\n") == read_line(line)


@pytest.mark.parametrize("line", ["", "INFO : {}", "{}", '{"level": 1}', "[1]", "{" * 9999 + "}"])
def test_other_lines_are_left_alone(line):
    assert read_line(line) is None
