"""A run leaves its page and never fails because of it; what nobody foresaw is kept beside it."""

import json

import pytest

from fedprune.report.page import leave_report
from tests.support.jobs import job
from tests.support.reports import made_up


def test_the_page_lies_beside_the_results(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made_up(["a", "b"])))
    leave_report(tmp_path)
    assert "<h1>demo" in (tmp_path / "report.html").read_text()


def test_what_goes_wrong_is_logged(tmp_path, caplog):
    (tmp_path / "results.json").write_text('{"format": 1}')
    leave_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
    assert "no report was written: KeyError" in caplog.text


def test_an_error_that_nobody_foresaw_is_kept_beside_the_run(tmp_path, monkeypatch):
    def fails(*job):
        raise IndexError("list index out of range")

    monkeypatch.setattr("server_app.job.build_results", fails)
    with pytest.raises(IndexError):
        job(tmp_path / "run")
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["reason"].startswith("IndexError: list index out of range. Go on with the run")
