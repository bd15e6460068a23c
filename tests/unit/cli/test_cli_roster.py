"""`fedprune roster` as sites type it one after another."""

import io
import sys

import pytest

from fedprune.cli import main
from fedprune.privacy.roster import Roster
from tests.support.signing import site_keys

SITES = ("north", "south", "east")


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return site_keys(SITES, tmp_path)


def made(capsys, *more: str) -> str:
    for site in SITES:
        assert main(["roster", "add", "r.toml", site, f"{site}.key.pub", *more]) == 0
    return capsys.readouterr().out


def test_added_signed_and_shown(tmp_path, keys, capsys):
    added = made(capsys, "--min-cohort", "2")
    assert all(key.public.fingerprint in added for key in keys.values())
    assert main(["roster", "show", "r.toml"]) == 1
    assert "0 of the 3 signatures" in capsys.readouterr().err
    for site in SITES:
        assert main(["roster", "sign", "r.toml", "--key", f"{site}.key"]) == 0
    roster = Roster.read(tmp_path / "r.toml")
    roster.verify(keys["south"].public)
    assert capsys.readouterr().out.count(roster.digest) == 3
    assert main(["roster", "show", "r.toml"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("holds") == 3 + 1 and "fewer than 2 sites" in shown
    assert roster.digest in shown.replace("\n", "")


def test_a_new_site_is_a_new_roster_and_all_sign_again(tmp_path, keys, capsys):
    made(capsys)
    for site in SITES:
        main(["roster", "sign", "r.toml", "--key", f"{site}.key"])
    site_keys(["west"], tmp_path)
    capsys.readouterr()
    assert main(["roster", "add", "r.toml", "west", "west.key.pub", "--signatures", "3"]) == 0
    assert "all sites have to sign it again" in capsys.readouterr().out
    assert not Roster.read(tmp_path / "r.toml").signatures
    # Who signs a changed file leaves out what no longer holds, and keeps what does.
    for site in ("north", "west"):
        main(["roster", "sign", "r.toml", "--key", f"{site}.key"])
    text = (tmp_path / "r.toml").read_text()
    assert Roster.read(tmp_path / "r.toml").signed_by == ("north", "west")
    (tmp_path / "r.toml").write_text(text.replace("needed = 3", "needed = 2"))
    assert main(["roster", "sign", "r.toml", "--key", "east.key"]) == 0
    assert Roster.read(tmp_path / "r.toml").signed_by == ("east",)


def test_in_a_container_it_is_piped(tmp_path, keys, capsys, monkeypatch):
    made(capsys)
    pipe = io.TextIOWrapper(io.BytesIO((tmp_path / "r.toml").read_bytes()))
    monkeypatch.setattr(sys, "stdin", pipe)
    assert main(["roster", "sign", "-", "--key", "north.key"]) == 0
    shown = capsys.readouterr()
    assert "Signed as 'north'" in shown.err
    assert Roster.parse(shown.out.encode(), "x").signed_by == ("north",)


def test_what_is_wrong_changes_nothing(tmp_path, keys, capsys):
    made(capsys)
    before = (tmp_path / "r.toml").read_bytes()
    for words, said in (
        (["add", "r.toml", "x", "north.key.pub"], "'north' and 'x' have the same key"),
        (["add", "r.toml", "x", "north.key"], "is a private key"),
        (["add", "r.toml", "x", "none.pub"], "cannot be read"),
        (["add", "r.toml", "north", "north.key.pub", "--min-cohort", "1"], "at least 2, got 1"),
        (["add", "r.toml", "north", "north.key.pub", "--signatures", "4"], "must be 1 to 3"),
        (["sign", "r.toml", "--key", "north.key.pub"], "read by others|is no private key"),
        (["sign", "none.toml", "--key", "north.key"], "cannot be read"),
        (["show", "north.key"], "is no TOML"),
    ):
        assert main(["roster", *words]) == 2, words
        told = capsys.readouterr().err
        assert any(part in told for part in said.split("|")), told
    site_keys(["guest"], tmp_path)
    assert main(["roster", "sign", "r.toml", "--key", "guest.key"]) == 2
    assert "No site of the roster has the key" in capsys.readouterr().err
    assert (tmp_path / "r.toml").read_bytes() == before
