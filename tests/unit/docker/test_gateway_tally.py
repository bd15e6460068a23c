"""What the gateway counts, on lines as nginx writes them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.gateway import module

tally = module("tally")
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = "a name that nobody else may read"


def entry(**fields: str) -> str:
    usual = {"status": "403", "address": "203.0.113.9", "method": "POST", "api": "other"}
    return json.dumps(usual | {"https": "on", "limits": "PASSED PASSED"} | fields)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"api": "control"}, "control"),
        ({"api": "runtime"}, "runtime"),
        ({"api": "fleet"}, "other"),
        ({"api": "register"}, "auth"),
        ({"api": "register", "status": "412"}, "auth"),
        ({"api": "fleet", "status": "401"}, "auth"),
        ({"api": "activate", "status": "412"}, "auth"),
        ({"api": "fleet", "status": "412"}, None),
        ({"api": "fleet", "status": "415"}, "other"),
        ({"status": "413"}, "too-large"),
        ({"status": "408"}, "slow"),
        ({"status": "444", "https": ""}, "plain"),
        ({"status": "403", "https": ""}, "plain"),
        ({"status": "503", "limits": "REJECTED "}, "rate"),
        ({"status": "503", "limits": "PASSED REJECTED_DRY_RUN"}, "rate"),
        ({"status": "503"}, None),
    ],
)
def test_a_request_is_of_one_kind(fields: dict[str, str], kind: str | None) -> None:
    found = tally.read_refusal(entry(**fields))
    assert (found.kind if found else None) == kind
    assert found is None or found.address == "203.0.113.9"


@pytest.mark.parametrize(
    ("text", "kind", "detail"),
    [
        (
            "SSL_do_handshake() failed (SSL: error:0A000418:SSL routines::tlsv1 alert unknown ca:"
            "SSL alert number 48) while SSL handshaking",
            "tls",
            "tlsv1 alert unknown ca",
        ),
        (
            "SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number)"
            " while SSL handshaking",
            "tls",
            "wrong version number",
        ),
        ("client timed out (110: Connection timed out) while SSL handshaking", "slow", "nothing"),
        ("client timed out (110: Connection timed out) while waiting for request", "slow", ""),
    ],
)
def test_a_handshake_that_fails_is_counted(text: str, kind: str, detail: str) -> None:
    line = f"2026/01/02 03:04:05 [info] 12#12: *7 {text}, client: 2001:db8::7, server: 0.0.0.0:8443"
    found = tally.read_refusal(line)
    assert (found.address, found.kind) == ("2001:db8::7", kind)
    assert detail in found.detail
    assert tally.read_trouble(line) is None


@pytest.mark.parametrize("line", ["{", "{}", "[1]", "", '{"status": 4}', "{" * 100_000])
def test_a_broken_line_is_nothing(line: str) -> None:
    assert tally.read_refusal(line) is None
    assert tally.read_trouble(line) is None


def test_trouble_is_told_without_what_a_client_sent() -> None:
    start = "2026/01/02 03:04:05 [error] 12#12: *7 "
    tail = f', client: 203.0.113.9, server: , request: "GET /{SECRET}", host: "{SECRET}"'
    told = tally.read_trouble(f"{start}connect() failed (111: Connection refused){tail}")
    assert told == "nginx, error: connect() failed (111: Connection refused)"
    assert tally.read_trouble(f"{start}client sent {SECRET}{tail}") is None
    assert tally.read_trouble(f"2026/01/02 03:04:05 [notice] 1#1: {SECRET}") is None


def test_the_first_of_an_address_and_kind_is_told_and_all_are_counted() -> None:
    counted = tally.Tally(START)
    pairs = [("a", "tls"), ("a", "tls"), ("b", "tls"), ("a", "control"), ("b", "tls")]
    told = [counted.add(tally.Refusal(who, kind, ""), START) for who, kind in pairs]
    assert told == [True, False, True, True, False]
    assert counted.refused == dict.fromkeys(tally.KINDS, 0) | {"tls": 4, "control": 1}
    assert counted.addresses == {"a": 3, "b": 2}
    assert counted.summary() == "refused since 2026-01-02T03:04:05+00:00: control 1, tls 4"


def test_an_attack_from_everywhere_takes_little_memory_and_few_lines(tmp_path: Path) -> None:
    counted = tally.Tally(START)
    for _ in range(50):
        counted.add(tally.Refusal("198.51.100.1", "control", ""), START)
    told = 0
    for number in range(20_000):
        moment = START + timedelta(seconds=number // 100)
        told += counted.add(tally.Refusal(f"address {number}", "tls", ""), moment)
    assert counted.total == 20_050
    assert len(counted.addresses) <= tally.MAX_REMEMBERED
    assert len(counted._told) <= tally.MAX_REMEMBERED
    assert told <= tally.MAX_LINES_PER_MINUTE * 5
    counted.save(tmp_path / "refused.json", START)
    listed = json.loads((tmp_path / "refused.json").read_text())["addresses"]
    assert len(listed) == tally.MAX_LISTED
    assert listed["198.51.100.1"] == 50


def test_the_file_is_read_again_and_counting_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "refused.json"
    first = tally.load_tally(path, START)
    first.add(tally.Refusal("203.0.113.9", "plain", ""), START)
    first.save(path, START + timedelta(seconds=1))
    assert json.loads(path.read_text()) == {
        "version": 1,
        "since": "2026-01-02T03:04:05+00:00",
        "updated": "2026-01-02T03:04:06+00:00",
        "refused": dict.fromkeys(tally.KINDS, 0) | {"plain": 1},
        "addresses": {"203.0.113.9": 1},
    }
    again = tally.load_tally(path, START + timedelta(days=1))
    assert again.since == START
    again.add(tally.Refusal("203.0.113.9", "plain", ""), START)
    assert again.refused["plain"] == again.addresses["203.0.113.9"] == 2
    assert [one.name for one in tmp_path.iterdir()] == ["refused.json"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"version": 2, "since": "2026-01-02T03:04:05+00:00"}', '{"version": 1}']
    + ['{"version": 1, "since": "yesterday", "refused": {}, "addresses": {}}', "\x00"],
)
def test_an_unreadable_file_is_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "refused.json"
    path.write_text(text)
    assert tally.load_tally(path, START) == tally.Tally(START)
