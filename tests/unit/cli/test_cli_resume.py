"""`fedprune run resume=FOLDER`: what is submitted, where it writes, what it refuses."""

import errno
import json
import shlex
from datetime import datetime
from pathlib import Path

import pytest

from fedprune.cli import main
from fedprune.cli.job import perform, plan_resumption, prepare
from fedprune.cli.progress import PlainView
from fedprune.cli.run import note_console, run_job
from fedprune.config import config_from_overrides, find_resumption, to_yaml
from fedprune.errors import ConfigError
from fedprune.flower.command import RunStatus

NOW = datetime(2026, 11, 21, 13, 5, 9)


def interrupted(folder: Path, *overrides: str) -> Path:
    """Make the folder of a run that has begun."""
    (folder / "state").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config_from_overrides(overrides)))
    (folder / "run.log").write_text("before\n")
    return folder


def planned(cwd: Path, *overrides: str):
    resumed = find_resumption(overrides)
    assert resumed is not None
    return plan_resumption(resumed, cwd, NOW)


def performed(job, line: str, monkeypatch):
    """Run a job that says one line in this process."""

    def run(run_config, clients, take):
        take(line)
        return RunStatus("finished:completed")

    monkeypatch.setattr("fedprune.cli.job.run_inline", run)
    return perform(job, PlainView(note_console()), lambda job, view: pytest.fail("connected"))


def test_the_app_is_told_the_folder_and_what_may_differ(tmp_path):
    folder = interrupted(tmp_path / "my run", "federation.num_clients=5")
    job = planned(tmp_path, f"resume={folder}", "strategy.timeout=9", "federation.client_cpus=1")
    assert job.folder == folder and job.resumed and not job.connection
    assert job.federation["num-supernodes"] == 5
    assert shlex.split(str(job.run_config["overrides"])) == [
        f"resume={folder}",
        "strategy.timeout=9",
        "federation.client_cpus=1",
    ]


def test_a_folder_is_relative_to_the_user_s(tmp_path, monkeypatch):
    folder = interrupted(tmp_path / "run", "federation.backend=inline", "federation.num_clients=2")
    monkeypatch.chdir(tmp_path)
    job = planned(tmp_path, "resume=run")
    assert job.folder == folder and job.clients == 2


def test_a_deployment_s_folder_is_on_another_machine(tmp_path):
    job = planned(tmp_path, "resume=/data/run", "federation.connection=production")
    assert job.connection == "production"
    assert job.folder.parent == tmp_path / "runs"
    with pytest.raises(ConfigError, match="there is no configuration in '/nowhere'"):
        planned(tmp_path, "resume=/nowhere")


def test_a_resumed_run_adds_to_its_log(tmp_path, monkeypatch):
    folder = interrupted(tmp_path / "run", "federation.backend=inline")
    job = planned(tmp_path, f"resume={folder}")
    prepare(job)

    performed(job, "after", monkeypatch)
    assert (folder / "run.log").read_text() == "before\nafter\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
def test_a_log_without_room_stops_no_run(tmp_path, monkeypatch):
    folder = interrupted(tmp_path / "run", "federation.backend=inline")
    (folder / "run.log").unlink()
    (folder / "run.log").symlink_to("/dev/full")
    job = planned(tmp_path, f"resume={folder}")

    ended = performed(job, "a line", monkeypatch)
    assert ended.status.completed and ended.tail == "a line"


def test_a_folder_that_cannot_be_written_is_named_before_anything_starts(tmp_path, monkeypatch):
    def touch(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    job = planned(tmp_path, f"resume={interrupted(tmp_path / 'run')}")
    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(ConfigError, match="can be written.*run' is not: Read-only file system"):
        prepare(job)


@pytest.mark.parametrize(
    ("state", "code"), [("finished:failed", 1), ("interrupted", 130), ("finished:stopped", 1)]
)
def test_how_to_go_on_is_told(tmp_path, monkeypatch, capsys, state, code):
    def run(run_config, clients, take):
        (tmp_path / "run" / "state").mkdir()
        return RunStatus(state)

    monkeypatch.setattr("fedprune.cli.job.run_inline", run)
    assert run_job(["federation.backend=inline", f"output_dir={tmp_path / 'run'}"]) == code
    way = f"fedprune run resume={tmp_path / 'run'}"
    assert capsys.readouterr().err.count(way) == 1


def test_a_run_that_is_finished_says_so(tmp_path, monkeypatch, capsys):
    folder = interrupted(tmp_path / "run")
    (folder / "results.json").write_text("{}")
    monkeypatch.setattr("fedprune.cli.run.render", json.dumps)
    assert main(["run", f"resume={folder}"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("The run is finished")
    assert shown.out.splitlines()[-1] == str(folder)


@pytest.mark.parametrize("override", ["sparsity=0.6", "strategy=fedspallm", "output_dir=x"])
def test_what_would_change_the_result_is_refused(tmp_path, override, capsys):
    folder = interrupted(tmp_path / "run")
    assert main(["run", f"resume={folder}", override]) == 2
    key = override.partition("=")[0]
    assert f"{key} cannot be changed now" in capsys.readouterr().err
