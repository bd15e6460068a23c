"""`fedprune status`."""

import json
import os
import re
import threading
import time
from dataclasses import replace

import pytest

from fedprune.cli import main, status
from fedprune.cli.status import newest_run
from fedprune.errors import ConfigError
from fedprune.results.ledger import Entry
from fedprune.results.run_status import PROGRESS, RunStatus, Status, read_status

_EVIL = "\x1b[2Jsite\x9b\u202e\n"


@pytest.fixture
def going(tmp_path):
    """A run in the middle, one of whose clients has an evil name."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    status = RunStatus(folder)
    with status:
        status.show("prune", 3, 8, ["block 4/8"])
        status.answers(1, 3)
        status.pruned(3, 8, (1, 2), 90.0)
        status.expect(["a", "b", _EVIL])
        status.asked("b")
        status.note(Entry(1, "prune", "a", 500, 1500, 1.0))
        status.note(Entry(1, "prune", _EVIL, 0, 0, 1.0, refused=f"{_EVIL} (Flower error 5)"))
        found = replace(status.now, nodes_alive=2)
    (folder / PROGRESS).write_text(found.to_json())
    return folder


def test_table(going, capsys):
    assert main(["status", str(going)]) == 0
    out = capsys.readouterr().out
    for words in (
        "first · running",
        "3 of 8 pruned, round 1 of 2",
        "38%",
        "1 of 3 answered",
        "1 working, 1 answered, 1 lost",
        "2 connected",
        "1.5 kB up, 500 B down",
        "90 s of pruning left",
        "1 lost",
    ):
        assert words in out, words
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)


def test_json_is_the_file_and_whether_it_is_stale(going, capsys):
    assert main(["status", str(going), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii() and "\x1b" not in out
    assert json.loads(out) == json.loads((going / PROGRESS).read_text()) | {"stale": False}


def parsed(text: str) -> dict[str, float]:
    """Read the exposition format as its definition has it."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([a-z_]+)\{((?:[a-z]+=\"[^\"\\\n]*\",?)*)\} (\S+)", line)
            assert match, line
            labels = re.findall(r'([a-z]+)="([^"]*)"', match[2])
            found[match[1], *(v for k, v in labels if k != "run")] = float(match[3])
    helped = re.findall(r"^# HELP (\S+) ", text, re.M)
    typed = re.findall(r"^# TYPE (\S+) (?:gauge|counter)$", text, re.M)
    assert helped == typed == list(dict.fromkeys(name for name, *_ in found))
    return found


def test_metrics_name_no_client(going, capsys):
    assert main(["status", str(going), "--metrics"]) == 0
    out = capsys.readouterr().out
    found = parsed(out)
    expected = {
        ("fedprune_up",): 1,
        ("fedprune_status", "running"): 1,
        ("fedprune_blocks_done",): 3,
        ("fedprune_blocks_total",): 8,
        ("fedprune_nodes_alive",): 2,
        ("fedprune_clients", "lost"): 1,
        ("fedprune_bytes_up_total",): 1500,
        ("fedprune_refused_total", "lost"): 1,
        ("fedprune_refused_total", "timeout"): 0,
    }
    assert expected.items() <= found.items()
    assert 0 < found[("fedprune_eta_seconds",)] <= 90
    assert "site" not in out


def dead(folder) -> None:
    found = read_status(folder)
    text = replace(found, updated="2026-01-02T03:04:05Z").to_json()
    (folder / PROGRESS).write_text(text)


def test_a_dead_process_is_told_with_the_way_on(going, capsys):
    dead(going)
    assert main(["status", str(going)]) == 0
    out = capsys.readouterr().out
    assert "first · stale" in out and "seems to be dead" in " ".join(out.split())
    assert f"fedprune run resume={going}" in out.splitlines()
    main(["status", str(going), "--metrics"])
    assert parsed(capsys.readouterr().out)[("fedprune_up",)] == 0
    assert main(["status", str(going), "--watch"]) == 1


@pytest.mark.parametrize("end, code", [("done", 0), ("failed", 1)])
def test_watch_lasts_until_the_end(going, capsys, monkeypatch, end, code):
    monkeypatch.setattr(status, "_LOOK_SECONDS", 0.01)
    found = read_status(going)

    def finish() -> None:
        time.sleep(0.2)
        text = replace(found, status=end, reason="too few").to_json()
        partial = going / "partial"
        partial.write_text(text)
        partial.replace(going / PROGRESS)

    other = threading.Thread(target=finish)
    other.start()
    assert main(["status", str(going), "--watch"]) == code
    other.join()
    out = capsys.readouterr().out
    assert "first · running" in out and f"first · {end}" in out
    assert ("The run failed: too few" in out) == bool(code)


def test_the_newest_run_is_taken(going, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (going.parent / "only-a-log").mkdir()
    assert newest_run().name == "first"
    other = tmp_path / "home" / "runs" / "second"
    other.mkdir(parents=True)
    (other / PROGRESS).write_bytes((going / PROGRESS).read_bytes())
    os.utime(going / PROGRESS, (1, 1))
    assert newest_run() == other
    assert main(["status"]) == 0
    monkeypatch.chdir(other)
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="There is no run in"):
        newest_run()


def test_folders_without_a_run(tmp_path, capsys):
    for folder, message in ((tmp_path / "none", "is not there"), (tmp_path, "no `progress.json`")):
        assert main(["status", str(folder)]) == 2
        assert message in capsys.readouterr().err


def test_damaged_and_foreign_files(going, capsys):
    for text, message in (("{", "is damaged"), ('{"version": 9}', "another version")):
        (going / PROGRESS).write_text(text)
        assert main(["status", str(going)]) == 1
        assert message in capsys.readouterr().err


def test_a_finished_run_of_another_time(tmp_path, capsys):
    one = Status("old", "done", started="2026-01-02T03:04:05Z", updated="2026-01-02T03:05:05Z")
    (tmp_path / PROGRESS).write_text(one.to_json())
    assert main(["status", str(tmp_path), "--watch"]) == 0
    assert "old · done" in capsys.readouterr().out
