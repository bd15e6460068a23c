"""`fedprune report`: a page from results, and errors that say what to do."""

import json
import webbrowser

import pytest

from fedprune.cli import main
from tests.support.reports import made_up


@pytest.fixture
def run(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made_up(["a", "b"])))
    return tmp_path


def test_it_writes_the_page_and_prints_where(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    first = (run / "report.html").read_bytes()
    assert first.startswith(b"<!doctype html>")
    main(["report", str(run)])
    assert (run / "report.html").read_bytes() == first


def test_it_opens_the_page_if_asked_to(run, monkeypatch, capsys):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert main(["report", str(run), "--open"]) == 0
    assert opened == [(run / "report.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert main(["report", str(run), "--open"]) == 1
    assert "No browser was found" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "results.json" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_an_error(run, capsys):
    (run / "report.html").mkdir()
    assert main(["report", str(run)]) == 1
    assert "cannot be written" in capsys.readouterr().err
