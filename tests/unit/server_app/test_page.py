"""A run leaves its page, and never fails because of it."""

import json

from server_app.page import leave_report
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
