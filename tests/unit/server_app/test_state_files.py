"""A run's state on the disk: it comes back, and what is damaged or another run's is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedprune.errors import ConfigError
from fedprune.records import LocalResult
from fedprune.results.ledger import Entry, Ledger
from server_app.run_folder import StateFiles
from strategies.state import RunState, Timings
from tests.support.scripted import REPORT

IDENTITY = {"code": "c", "configuration": "y", "model": "m"}
VOTES = {"1/a": np.arange(5, dtype=np.uint64), "1/'x/y' (b)": np.ones((2, 3))}


def entry(number: int) -> Entry:
    return Entry(number, "prune", f"'näme' {number}", 1, 2, 0.5, refused="late\nagain")


def state() -> RunState:
    return RunState(
        clients=[REPORT, replace(REPORT, partition_id=3, site="it's")],
        active=[3],
        opened=[0, 3],
        positions={0: 1, 3: 2},
        round=2,
        chunk=1,
        step=7,
        folded=[3],
        update=b"up",
        figures={"allocation": {"sparsities": [0.1, 0.2 / 3]}},
        local={"partition 0": LocalResult(1 / 3, 10, {"b": 0.1})},
        timings=Timings({"prune": 5.0}),
    )


def files(folder, *entries: Entry) -> StateFiles:
    found = StateFiles(folder / "state", Ledger(list(entries)))
    found.identify(IDENTITY)
    return found


def test_a_state_comes_back(tmp_path):
    before = state()
    files(tmp_path, entry(1), entry(2)).save(before, VOTES)
    again = StateFiles(tmp_path / "state", Ledger())
    after = again.load()
    assert after.timings.seconds == {"prune": 5.0}
    assert replace(after, timings=before.timings) == before
    assert again.ledger.entries == [entry(1), entry(2)]
    again.identify(IDENTITY)
    found = again.partial_state()
    assert set(found) == set(VOTES)
    assert all(np.array_equal(found[name], VOTES[name]) for name in VOTES)


def test_nothing_saved_is_a_new_run(tmp_path):
    first, second = (StateFiles(tmp_path / "state", Ledger()).load() for _ in range(2))
    assert not first.clients and first.job != second.job


def test_only_the_latest_files_stay(tmp_path):
    kept, now = files(tmp_path), state()
    kept.save(now, VOTES)
    now.folded.append(0)
    kept.save(now, VOTES)
    names = {path.name for path in kept.folder.iterdir()}
    assert names == {"run.json", "ledger.jsonl", "update-2-1.bin", "partial-7-2.npz"}
    now.end_chunk([3])
    now.update = b"next"
    kept.save(now, {})
    names = {path.name for path in kept.folder.iterdir()}
    assert names == {"run.json", "ledger.jsonl", "update-2-2.bin"}
    now.begin_round(3, [3])
    kept.save(now, {})
    assert {path.name for path in kept.folder.iterdir()} == {"run.json", "ledger.jsonl"}


def test_what_a_kill_wrote_after_the_last_state_does_not_count(tmp_path):
    """The next process may do it again with fewer clients, and then otherwise."""
    now = state()
    files(tmp_path, entry(1)).save(now, {})
    with (tmp_path / "state" / "ledger.jsonl").open("a") as ledger:
        ledger.write('{"round": 2, "pha')
    now.chunk += 1
    (tmp_path / "state" / "update-2-2.bin").write_bytes(b"of a process that was killed")
    (tmp_path / "state" / "run.json.partial").write_bytes(b"{")
    again = StateFiles(tmp_path / "state", Ledger())
    after = again.load()
    assert after.chunk == 1 and after.update == b"up"
    again.ledger.add(entry(2))
    after.chunk, after.update = 2, b"mine"
    again.save(after, {})
    last = StateFiles(tmp_path / "state", Ledger())
    assert last.load().update == b"mine"
    assert last.ledger.entries == [entry(1), entry(2)]


@pytest.mark.parametrize(
    ("key", "words"), [("code", "other sources"), ("configuration", "yaml"), ("model", "another")]
)
def test_another_run_s_state_is_refused(tmp_path, key, words):
    files(tmp_path).save(state(), {})
    again = StateFiles(tmp_path / "state", Ledger())
    again.load()
    with pytest.raises(ConfigError, match=words):
        again.identify({**IDENTITY, key: "other"})


def change(**values):
    def changed(folder):
        plain = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(plain | values))

    return changed


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "run.json").write_text("{"),
        lambda folder: (folder / "run.json").write_text("[]"),
        lambda folder: (folder / "run.json").write_bytes(b"\xff"),
        change(format=2),
        change(state={"job": 1}),
        change(state={**RunState().to_dict(), "positions": []}),
        change(ledger=10**6),
        lambda folder: (folder / "ledger.jsonl").unlink(),
        lambda folder: (folder / "update-2-1.bin").unlink(),
    ],
)
def test_a_damaged_state_is_refused_with_a_way_out(tmp_path, damage):
    files(tmp_path, entry(1)).save(state(), {})
    damage(tmp_path / "state")
    with pytest.raises(ConfigError, match="is damaged .*Start the run anew in another folder"):
        StateFiles(tmp_path / "state", Ledger()).load()


@pytest.mark.parametrize("length", [0, -40])
def test_damaged_votes_are_refused(tmp_path, length):
    kept = files(tmp_path)
    kept.save(state(), VOTES)
    path = tmp_path / "state" / "partial-7-1.npz"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ConfigError, match="is damaged"):
        kept.partial_state()
