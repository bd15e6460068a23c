"""What nobody foresaw is kept beside the run."""

import json

import pytest

from tests.support.jobs import job


def test_an_error_that_nobody_foresaw_is_kept_beside_the_run(tmp_path, monkeypatch):
    def fails(*job):
        raise IndexError("list index out of range")

    monkeypatch.setattr("server_app.job.build_results", fails)
    with pytest.raises(IndexError):
        job(tmp_path / "run")
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["reason"].startswith("IndexError: list index out of range. Go on with the run")
