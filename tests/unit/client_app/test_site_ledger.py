"""The site's ledger: every entry chained, no change unnoticed, and nothing leaves without one."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from client_app.ledger import NOTHING, Entry, LedgerError, Sent, append, entries
from fedprune.cli import main

SENT = Sent("train.prune", "7", "a" * 32, "s", "c", "x", "sums", 100, "d" * 64)


def filled(path, count=4):
    return [append(path, replace(SENT, bytes=number)) for number in range(count)]


def test_entries_are_read_as_they_were_added(tmp_path):
    path = tmp_path / "new" / "ledger.jsonl"
    added = filled(path)
    assert list(entries(path)) == added
    assert [one.number for one in added] == [0, 1, 2, 3]
    assert path.stat().st_mode & 0o077 == 0


def test_hashes_are_those_of_the_lines(tmp_path):
    path = tmp_path / "ledger"
    filled(path)
    previous = NOTHING
    for line in path.read_bytes().splitlines():
        assert json.loads(line)["previous"] == previous
        previous = hashlib.sha256(line).hexdigest()
    assert list(entries(path))[-1].hash == previous


def test_many_processes_make_one_chain(tmp_path):
    path = tmp_path / "ledger"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append(path, replace(SENT, bytes=number)), range(40)))
    assert sorted(one.bytes for one in entries(path)) == list(range(40))


@pytest.mark.parametrize("line", range(3))
@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"bytes":', b'"bytes":9'),
        lambda line: line.replace(b'"bytes":', b'"bytes": '),
        lambda line: b"",
        lambda line: line + line,
        lambda line: b"{}\n",
        lambda line: b"[" * 100_000 + b"\n",
        lambda line: line[:40] + b"\n",
        lambda line: line.replace(b'"cut":false', b'"cut":0'),
    ],
)
def test_a_change_is_noticed(tmp_path, line, change):
    path = tmp_path / "ledger"
    added = filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = change(lines[line])
    path.write_bytes(b"".join(lines))
    held, iterator = [], entries(path)
    with pytest.raises(LedgerError, match="no entry of a ledger|not chained"):
        while True:
            held.append(next(iterator))
    assert held[:line] == added[:line] and len(held) <= line + 1


def test_the_end_shows_against_a_hash_that_was_noted(tmp_path, capsys):
    path = tmp_path / "ledger"
    head = filled(path)[-1].hash
    whole = path.read_bytes().splitlines(keepends=True)
    for end in ([], [whole[3].replace(b'"bytes":3', b'"bytes":4')]):
        path.write_bytes(b"".join([*whole[:3], *end]))
        assert main(["ledger", "verify", str(path)]) == 0
        assert main(["ledger", "verify", str(path), "--head", head]) == 1
    capsys.readouterr()


def test_an_entry_that_was_cut_off_is_taken_back_and_told(tmp_path):
    path = tmp_path / "ledger"
    filled(path, 2)
    whole = path.read_bytes()
    for cut in (1, 30, len(whole.splitlines()[1])):
        path.write_bytes(whole[: len(whole.splitlines(keepends=True)[0]) + cut])
        with pytest.raises(LedgerError, match="line 2 .* cut off"):
            list(entries(path))
        append(path, SENT)
        assert [one.cut for one in entries(path)] == [False, True]
        path.write_bytes(whole)


def test_long_entries_are_found_again(tmp_path):
    path = tmp_path / "ledger"
    for size in (10, 5000, 4096, 3):
        append(path, replace(SENT, error="x" * size))
    assert [len(one.error) for one in entries(path)] == [10, 5000, 4096, 3]


def test_one_that_cannot_be_written_or_is_damaged_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="nothing leaves") as caught:
        append(tmp_path / "file" / "ledger", SENT)
    assert str(tmp_path) not in caught.value.outside
    (tmp_path / "ledger").write_text("no entry\n")
    with pytest.raises(LedgerError, match="no entry of a ledger"):
        append(tmp_path / "ledger", SENT)
    with pytest.raises(LedgerError, match="cannot be read"):
        list(entries(tmp_path / "none"))


def test_commands(tmp_path, capsys):
    path = tmp_path / "ledger"
    added = filled(path)
    append(path, replace(SENT, request="query.handshake", error="ConfigError: no"))
    assert main(["ledger", "verify", str(path)]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert "5 entries hold" in shown
    assert main(["ledger", "verify", str(path), "--head", added[1].hash]) == 0
    capsys.readouterr()
    assert main(["ledger", "verify", str(path), "--head", "f" * 64]) == 1
    assert "another ledger" in capsys.readouterr().err
    assert main(["ledger", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "what left this site" in shown and "sums" in shown
    assert sum(line.startswith("│ 20") for line in shown.splitlines()) == 2  # kinds of answer
    assert main(["ledger", "show", str(path), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["hash"] for line in lines[:4]] == [one.hash for one in added]
    path.write_bytes(path.read_bytes().replace(b'"bytes":2', b'"bytes":3'))
    assert main(["ledger", "verify", str(path)]) == 1
    assert "line 4" in capsys.readouterr().err
    assert asdict(added[0])["previous"] == NOTHING and isinstance(added[0], Entry)
