import os
import stat
import time

import numpy as np
import pytest
import torch

from client_app.scratch import Scratch
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.wire.bitmask import BitMask


def test_hidden_states_round_trip_in_order_and_replace_older_ones(tmp_path):
    scratch = Scratch(tmp_path / "run-1" / "partition-00000")
    hidden = [torch.randn(1, 3, 4).to(torch.bfloat16) for _ in range(12)]
    scratch.save_hidden(2, [torch.zeros(1, 3, 4) for _ in range(12)])
    scratch.save_hidden(5, hidden)
    found = scratch.load_hidden(5)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, hidden, strict=True))
    assert len(list(scratch.folder.iterdir())) == 1
    with pytest.raises(ReplyRefusedError, match="inputs of block 2 are not on this node"):
        scratch.load_hidden(2)


def test_no_hidden_states_is_a_state_too(tmp_path):
    scratch = Scratch(tmp_path / "run-1" / "p")
    scratch.save_hidden(1, [])
    assert scratch.load_hidden(1) == []


def test_damaged_hidden_states_are_refused(tmp_path):
    scratch = Scratch(tmp_path / "run-1" / "p")
    scratch.save_hidden(1, [torch.zeros(1, 2, 2)])
    (path,) = scratch.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ReplyRefusedError):
        scratch.load_hidden(1)


def test_changes_round_trip_and_missing_ones_are_told(tmp_path):
    scratch = Scratch(tmp_path / "run-1" / "p")
    mask = np.eye(3, dtype=bool)
    scratch.save_changes(4, {"a": BitMask.from_bool(mask)})
    assert scratch.load_changes(4, {"a": (3, 3)}) == {"a": BitMask.from_bool(mask)}
    with pytest.raises(WireError):
        scratch.load_changes(4, {"a": (3, 4)})
    with pytest.raises(ReplyRefusedError, match="did not prune block 3"):
        scratch.load_changes(3, {"a": (3, 3)})


def test_folder_is_the_owner_s_alone_and_goes(tmp_path):
    scratch = Scratch(tmp_path / "run-1" / "p")
    scratch.receive("update", 0, b"x")
    assert stat.S_IMODE(scratch.folder.stat().st_mode) == 0o700
    scratch.remove()
    scratch.remove()
    assert not scratch.folder.exists()


def test_sweep_deletes_old_runs_only(tmp_path):
    for name in ("run-1", "run-2"):
        Scratch(tmp_path / name / "p").receive("update", 0, b"x")
    old = time.time() - 8 * 24 * 3600
    os.utime(tmp_path / "run-1", (old, old))
    Scratch.sweep(tmp_path / "run-3" / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["run-2"]


def test_an_outbox_is_fetched_once_parcel_by_parcel(tmp_path):
    scratch = Scratch(tmp_path / "run-1" / "p")
    scratch.save_outbox(b"abcdefgh")
    assert scratch.waiting
    assert scratch.parcel(1, 3) == b"def" and scratch.parcel(2, 3) == b"gh"
    assert not scratch.waiting
    for number in (1, 2, -1):
        with pytest.raises(ReplyRefusedError, match=f"no parcel {number}"):
            scratch.parcel(number, 3)


def test_an_inbox_collects_parcels_and_is_taken_once(tmp_path):
    scratch = Scratch(tmp_path / "run-1" / "p")
    scratch.receive("update", 0, b"old")
    for number, part in enumerate((b"ab", b"cd")):
        scratch.receive("update", number, part)
        scratch.receive("start-00003", number, part * 2)
    assert scratch.take_inbox() == {"update": b"abcd", "start-00003": b"ababcdcd"}
    assert scratch.take_inbox() == {}


@pytest.mark.parametrize("name", ["../update", "start-1", "", "masks"])
def test_an_inbox_takes_known_names_only(tmp_path, name):
    with pytest.raises(ReplyRefusedError, match="a parcel is of"):
        Scratch(tmp_path / "run-1" / "p").receive(name, 0, b"x")
    assert not (tmp_path / "run-1").exists()
