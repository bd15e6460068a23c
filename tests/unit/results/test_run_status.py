"""What an operator sees of a run while it goes."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from fedprune.errors import ConfigError, FedpruneError, QuorumError
from fedprune.results import run_status as statuses
from fedprune.results.ledger import KINDS, Entry, refusal_kind
from fedprune.results.run_status import PROGRESS, RunStatus, Status, WatchedLedger, read_status


def entry(client="a", phase="prune", refused="", up=10, down=5) -> Entry:
    return Entry(1, phase, client, down, up, 0.1, refused=refused)


@pytest.mark.parametrize(
    "phase, reason, kind",
    [
        ("prune", "no reply within 5 s (`strategy.timeout`)", "timeout"),
        ("prune", "it left before it could be asked", "lost"),
        ("prune", "it failed: gone (Flower error 4)", "lost"),
        ("prune", "it failed: gone (Flower error 5)", "lost"),
        ("prune", "it failed: gone (Flower error 5); it did not come back within 9 s", "lost"),
        ("prune", "it failed: the app exited (Flower error 8)", "crashed"),
        ("prune", "it failed: (Flower error 5) it says (Flower error 2)", "failed"),
        ("handshake", "it has not come back with the same samples", "lost"),
        ("handshake", "it runs other sources", "handshake"),
        ("model", "its hash is another one", "handshake"),
        ("prune", "block 3: 7 bytes too many", "invalid"),
        ("prune", "4 messages that answer no request of this run", "stray"),
    ],
)
def test_kinds_of_refusals(phase, reason, kind):
    assert refusal_kind(entry(phase=phase, refused=reason)) == kind
    assert kind in KINDS


def test_clients_go_from_waiting_to_their_end():
    status = RunStatus()
    ledger = WatchedLedger(status=status)
    for name in "abc":
        ledger.add(entry(name, "handshake"))
    ledger.add(entry("odd", "handshake", "it runs other sources"))
    status.expect("abc")
    for name in "ab":
        status.asked(name)
    ledger.add(entry("a"))
    assert status.now.states == {"waiting": 1, "working": 1, "answered": 1, "lost": 0, "refused": 1}
    ledger.add(entry("b", refused="no reply within 5 s (`strategy.timeout`)"))
    status.expect("ac")
    found = {client.name: (client.state, client.reason[:8]) for client in status.now.clients}
    assert found == {
        "odd": ("refused", "it runs "),
        "b": ("lost", "no reply"),
        "a": ("waiting", ""),
        "c": ("waiting", ""),
    }
    assert (status.now.bytes_up, status.now.bytes_down) == (60, 30)
    assert status.now.refused == {"handshake": 1, "timeout": 1}


def test_strays_are_no_client_and_the_model_s_bytes_are_counted_apart():
    status = RunStatus()
    ledger = WatchedLedger(status=status)
    ledger.add_strays(1, "prune", 7)
    ledger.add(entry("a", "model", down=1000))
    found = status.now
    assert found.refused == {"stray": 7} and [c.name for c in found.clients] == ["a"]
    assert (found.bytes_up, found.bytes_down, found.model_bytes) == (0, 0, 1000)


def test_a_thousand_clients_are_counted_and_a_few_are_listed():
    status = RunStatus()
    status.expect(f"client {number}" for number in range(1000))
    status.note(entry("client 999", refused="x" * 10_000))
    assert status.now.states["waiting"] == 999
    assert status.now.clients[0].name == "client 999"
    assert len(status.now.to_json()) < 12_000


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_file_follows_and_tells_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(statuses, "_WRITE_SECONDS", 0.01)
    with RunStatus(tmp_path, lambda: 3) as status:
        begun = read_status(tmp_path)
        assert (begun.status, begun.phase, begun.run) == ("running", "load", tmp_path.name)
        status.show("prune", 1, 4, ["block 2/4"])
        status.pruned(1, 4, (1, 1), 60.0)
        wait_for(lambda: read_status(tmp_path).nodes_alive == 3)
        wait_for(lambda: read_status(tmp_path).blocks_done == 1)
        assert 0 < read_status(tmp_path).eta_seconds <= 60
        assert not read_status(tmp_path).stale(datetime.now(UTC))
    ended = read_status(tmp_path)
    assert (ended.status, ended.reason, ended.eta_seconds) == ("done", "", None)
    assert not [one for one in threading.enumerate() if one.name == "progress"]
    assert "job" not in json.loads((tmp_path / PROGRESS).read_text())


def test_a_failure_is_told_ours_in_words_others_by_type(tmp_path):
    with pytest.raises(QuorumError), RunStatus(tmp_path):
        raise QuorumError("1 client is left")
    assert read_status(tmp_path).reason == "1 client is left"
    with pytest.raises(ValueError), RunStatus(tmp_path):
        raise ValueError("Mrs Smith")
    assert read_status(tmp_path).reason == "ValueError; the log has more"
    with pytest.raises(SystemExit), RunStatus(tmp_path):
        raise SystemExit(3)
    found = read_status(tmp_path)
    assert (found.status, found.reason, found.starts) == ("failed", "it was stopped", 3)


def test_a_run_that_goes_on_keeps_its_start_and_adds_up(tmp_path):
    before = Status(tmp_path.name, seconds=100.0, started="2026-01-02T03:04:05Z", starts=2)
    before = Status(**{**vars(before), "updated": "2026-01-02T03:06:05Z"})
    (tmp_path / PROGRESS).write_text(before.to_json())
    status = RunStatus(tmp_path)
    ledger = WatchedLedger()
    ledger.entries += [entry("a"), entry("b", refused="it left before it could be asked")]
    with status:
        status.catch_up(ledger)
        found = status.now
    assert (found.starts, found.started, found.status) == (3, before.started, "running")
    assert found.seconds >= 100 and found.bytes_up == 20 and found.refused == {"lost": 1}


def test_a_connected_that_hangs_or_fails_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(statuses, "_WRITE_SECONDS", 0.01)
    never = threading.Event()
    with RunStatus(tmp_path, never.wait) as status:
        status.show("export", 0, 1)
        wait_for(lambda: read_status(tmp_path).phase == "export")
        assert read_status(tmp_path).nodes_alive is None
    never.set()

    def broken() -> int:
        raise RuntimeError("gone")

    with RunStatus(tmp_path, broken) as status:
        status.show("prune", 0, 1)
        wait_for(lambda: read_status(tmp_path).phase == "prune")
    assert read_status(tmp_path).nodes_alive is None


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path):
    with RunStatus(tmp_path / "gone") as status:
        status.show("prune", 0, 1)


def test_a_process_that_is_gone_and_one_that_is_silent_are_stale():
    now = datetime.now(UTC)
    written = now.isoformat(timespec="seconds")
    live = Status("a", started=written, updated=written, host="elsewhere", pid=1)
    assert not live.stale(now) and live.stale(now + timedelta(minutes=2))
    ended = Status("a", status="done", started=written, updated=written)
    assert not ended.stale(now + timedelta(days=9))
    here = {**vars(RunStatus().now), "started": written, "updated": written}
    assert not Status(**here).stale(now)
    assert Status(**{**here, "pid": 2**22 + 1}).stale(now)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"version": 2}', "must be 1, got '2': another version"),
        ('{"version": 1}', "is damaged"),
        (Status("a", started="x", updated="y").to_json(), "is damaged"),
    ],
)
def test_a_damaged_file_is_told(tmp_path, text, words):
    (tmp_path / PROGRESS).write_text(text)
    with pytest.raises(FedpruneError, match=words):
        read_status(tmp_path)


def test_every_wrong_type_is_damage(tmp_path):
    with RunStatus(tmp_path) as status:
        status.expect("a")
    plain = json.loads((tmp_path / PROGRESS).read_text())
    for key in plain:
        for value in ({"a": "b"}, [["x"]], True, "2026-01-02T03:04:05Z", None, -1.5):
            (tmp_path / PROGRESS).write_text(json.dumps(plain | {key: value}))
            try:
                found = read_status(tmp_path)
            except FedpruneError:
                continue
            assert type(getattr(found, key)) in (type(plain[key]), float, int, type(None), str)
    (tmp_path / PROGRESS).write_text(json.dumps(plain | {"more": 1}))
    with pytest.raises(FedpruneError, match="damaged"):
        read_status(tmp_path)


def test_no_folder_and_a_folder_without_a_run_are_wrong_usage(tmp_path):
    with pytest.raises(ConfigError, match="is not there"):
        read_status(tmp_path / "none")
    with pytest.raises(ConfigError, match="has no `progress.json`"):
        read_status(tmp_path)
