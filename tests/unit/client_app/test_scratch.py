import os
import stat
import threading
import time

import numpy as np
import pytest
import torch

from client_app.scratch import Scratch
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.wire.masks import BitMask

CLOCK = time.time


def test_hidden_states_stay_until_the_server_goes_on_from_others(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "partition-00000")
    hidden = [torch.randn(1, 3, 4).to(torch.bfloat16) for _ in range(12)]
    scratch.save_hidden(2, [torch.zeros(1, 3, 4) for _ in range(12)])
    scratch.save_hidden(5, hidden)
    assert len(scratch.load_hidden(2)) == 12
    scratch.go_on_from(5)
    found = scratch.load_hidden(5)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, hidden, strict=True))
    assert len(list(scratch.folder.iterdir())) == 1
    with pytest.raises(ReplyRefusedError, match="inputs of block 2 are not on this node"):
        scratch.load_hidden(2)


def test_what_a_kill_left_half_written_goes(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "p")
    scratch.save_hidden(1, [torch.zeros(1, 2, 2)])
    (scratch.folder / "hidden-00002.safetensors.partial").write_bytes(b"half")
    scratch.go_on_from(1)
    assert [path.name for path in scratch.folder.iterdir()] == ["hidden-00001.safetensors"]


def test_no_hidden_states_is_a_state_too(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "p")
    scratch.save_hidden(1, [])
    assert scratch.load_hidden(1) == []


def test_damaged_hidden_states_are_refused(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "p")
    scratch.save_hidden(1, [torch.zeros(1, 2, 2)])
    (path,) = scratch.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ReplyRefusedError):
        scratch.load_hidden(1)


def test_changes_round_trip_and_missing_ones_are_told(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "p")
    mask = np.eye(3, dtype=bool)
    scratch.save_changes(4, {"a": BitMask.from_bool(mask)})
    assert scratch.load_changes(4, {"a": (3, 3)}) == {"a": BitMask.from_bool(mask)}
    with pytest.raises(WireError):
        scratch.load_changes(4, {"a": (3, 4)})
    with pytest.raises(ReplyRefusedError, match="did not prune block 3"):
        scratch.load_changes(3, {"a": (3, 3)})


def test_folder_is_the_owner_s_alone_and_goes(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "p")
    scratch.receive("update", 0, b"x")
    assert stat.S_IMODE(scratch.folder.stat().st_mode) == 0o700
    scratch.remove()
    scratch.remove()
    assert not scratch.folder.exists()


def test_the_last_node_of_a_machine_forgets_the_job(tmp_path):
    first, second = (Scratch(tmp_path / "job-1" / name) for name in "ab")
    for scratch in (first, second):
        scratch.receive("update", 0, b"x")
    first.forget()
    assert [path.name for path in first.folder.parent.iterdir()] == ["b"]
    second.forget()
    second.forget()
    assert not first.folder.parent.exists()


def a_day_later(monkeypatch, days: float = 1.01) -> None:
    """Set the program's clock ahead, not that of the file system."""
    now = CLOCK()
    monkeypatch.setattr(time, "time", lambda: now + days * 24 * 3600)


def test_sweep_deletes_what_nobody_has_worked_on_for_a_week(tmp_path, monkeypatch):
    for name in ("job-1", "job-2", "job-3", "job-4"):
        Scratch(tmp_path / name / "p").receive("update", 0, b"x")
    old = time.time() - 8 * 24 * 3600
    for name in ("job-1", "job-2", "job-3"):
        os.utime(tmp_path / name, (old, old))
    Scratch(tmp_path / "job-2" / "p").save_changes(0, {})
    Scratch(tmp_path / "job-3" / "p").sweep()
    assert len(list(tmp_path.glob("job-*"))) == 4  # a clock can be wrong
    a_day_later(monkeypatch)
    Scratch(tmp_path / "job-3" / "p").sweep()
    found = sorted(path.name for path in tmp_path.glob("job-*"))
    assert found == ["job-2", "job-3", "job-4"]


def test_a_clock_that_is_ahead_and_put_back_deletes_nothing(tmp_path, monkeypatch):
    for name in ("job-1", "job-2"):
        Scratch(tmp_path / name / "p").receive("update", 0, b"x")
    for days in (30, 30, 0, 30, -30, 90, 0, 30, 0):
        a_day_later(monkeypatch, days)
        Scratch(tmp_path / "job-2" / "p").sweep()
        a_day_later(monkeypatch, days + 0.01)
        Scratch(tmp_path / "job-3" / "p").sweep()
        assert {path.name for path in tmp_path.glob("job-*")} == {"job-1", "job-2"}


def test_what_cannot_be_noted_is_not_deleted(tmp_path, monkeypatch):
    Scratch(tmp_path / "job-1" / "p").receive("update", 0, b"x")
    (tmp_path / ".unused.json").write_text('["job-1"]')
    a_day_later(monkeypatch, 30)
    Scratch(tmp_path / "job-3" / "p").sweep()
    assert list(tmp_path.glob("job-*"))


def test_an_outbox_is_fetched_segment_by_segment_and_again(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "p")
    scratch.save_outbox(b"abcdefgh")
    for _ in range(2):
        assert scratch.segment(1, 3) == b"def" and scratch.segment(2, 3) == b"gh"
    for number in (0, 3, -1):
        with pytest.raises(ReplyRefusedError, match=f"no segment {number}"):
            scratch.segment(number, 3)


def test_an_inbox_collects_segments_each_in_its_place(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "p")
    scratch.receive("update", 0, b"an older and longer one")
    for start, part in ((0, b"ab"), (2, b"cd"), (2, b"cd"), (4, b"e")):
        scratch.receive("update", start, part)
        scratch.receive("start-00003", 2 * start, part * 2)
    assert scratch.read_inbox({"update": 5}) == {"update": b"abcde"}
    assert {path.name for path in scratch.folder.iterdir()} == {"inbox-update.bin", ".lock"}
    assert scratch.read_inbox({"update": 5}) == {"update": b"abcde"}
    assert scratch.read_inbox({}) == {}


def test_what_an_inbox_lacks_is_told(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "p")
    with pytest.raises(ReplyRefusedError, match="starts at byte 2 follows 0 bytes of 'update'"):
        scratch.receive("update", 2, b"cd")
    with pytest.raises(ReplyRefusedError, match="4 bytes, 0 are on this node"):
        scratch.read_inbox({"update": 4})
    scratch.receive("update", 0, b"ab")
    with pytest.raises(ReplyRefusedError, match="4 bytes, 2 are on this node"):
        scratch.read_inbox({"update": 4})


def test_a_second_process_waits_for_the_first(tmp_path, caplog):
    scratch, order = Scratch(tmp_path / "job-1" / "p"), []

    def second():
        with scratch.exclusive():
            order.append("second")

    thread = threading.Thread(target=second)
    with scratch.exclusive():
        thread.start()
        while "still at work" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("name", ["../update", "start-1", "", "masks"])
def test_an_inbox_takes_known_names_only(tmp_path, name):
    with pytest.raises(ReplyRefusedError, match="a segment is of"):
        Scratch(tmp_path / "job-1" / "p").receive(name, 0, b"x")
    assert not (tmp_path / "job-1").exists()


def test_a_segment_waits_for_an_earlier_process_that_is_still_at_work(tmp_path):
    scratch = Scratch(tmp_path / "job-1" / "p")
    receiving = threading.Thread(target=scratch.receive, args=("update", 0, b"new"))
    with scratch.exclusive():
        receiving.start()
        receiving.join(0.2)
        assert receiving.is_alive() and not scratch.inbox("update").exists()
    receiving.join()
    assert scratch.inbox("update").read_bytes() == b"new"
