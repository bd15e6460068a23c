"""A standing policy: what it allows, every limit by name, and that only its key widens it."""

import datetime
import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_app.policy import Asked, Policy, signed_text
from fedprune.cli import main
from fedprune.config.schema import PAYLOADS
from fedprune.errors import ConfigError
from tests.support.signing import signing_key

TEXT = """# what the board allowed
format = "fedprune-policy"
version = 1
strategies = ["fedstats", "fedhessian"]
payloads = ["sums"]
min-cohort = 3
max-eps = 8.0
mb-per-day = 500
expires = 2027-01-31
"""
DAY = datetime.date(2027, 1, 31)
FINE = Asked("fedstats", {"sums"}, cohort=3, eps=8.0, perplexities=False)


def parsed(text: str = TEXT) -> Policy:
    return Policy.parse(text.encode(), Path("p.toml"))


def test_what_is_within_all_limits_is_allowed():
    policy = parsed()
    assert not list(policy.limits(FINE, DAY))
    assert policy.bytes_per_day == 500_000_000
    least = parsed(
        'format="fedprune-policy"\nversion=1\nstrategies=["fedprllm"]\npayloads=["masks"]'
    )
    assert not list(least.limits(Asked("fedprllm", {"masks"}, 1, None, False), DAY))
    assert least.bytes_per_day is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strategy": "fedprllm"}, "`strategies` has 'fedstats', 'fedhessian', .*'fedprllm'"),
        ({"payloads": {"sums", "moments"}}, "`payloads` has sums, .* asks for moments"),
        ({"cohort": 2}, "`min-cohort` is 3, this job opens sums over 2 clients"),
        ({"cohort": 1}, "`min-cohort` is 3, this job shows the server each client's own"),
        ({"eps": None}, "`max-eps` is 8, this job has no noise"),
        ({"eps": 8.1}, "`max-eps` is 8, this job allows 8.1"),
        ({"perplexities": True}, "`perplexities` is false"),
    ],
)
def test_each_limit_is_named(change, said):
    (limit,) = parsed().limits(replace(FINE, **change), DAY)
    assert re.search(said, limit), limit


@pytest.mark.parametrize("payload", PAYLOADS)
def test_all_that_can_leave_a_node_can_be_allowed(payload):
    policy = parsed(TEXT.replace('["sums"]', f'["{payload}"]'))
    assert not list(policy.limits(replace(FINE, payloads={payload}), DAY))


def test_it_ends():
    (limit,) = parsed().limits(FINE, DAY + datetime.timedelta(days=1))
    assert "`expires` was 2027-01-31" in limit


def test_all_limits_are_told_at_once():
    worst = Asked("fedprllm", {"masks"}, 1, None, True)
    assert len(list(parsed().limits(worst, datetime.date(2030, 1, 1)))) == 6


def test_nothing_of_it_changes_without_the_key():
    key, other = signing_key(), signing_key()
    signed = signed_text(TEXT, parsed(), key)
    assert signed.startswith("# what the board allowed\n")
    parsed(signed).verify(key.public)
    for before, after in (
        ('["fedstats", "fedhessian"]', '["fedstats", "fedprllm"]'),
        ('["sums"]', '["sums", "moments"]'),
        ("min-cohort = 3", "min-cohort = 2"),
        ("min-cohort = 3\n", ""),
        ("max-eps = 8.0", "max-eps = 9.0"),
        ("max-eps = 8.0\n", ""),
        ("mb-per-day = 500", "mb-per-day = 501"),
        ("mb-per-day = 500\n", ""),
        ("2027-01-31", "2027-02-28"),
        ("expires = 2027-01-31\n", "expires = 2027-01-31\nperplexities = true\n"),
    ):
        assert before in signed
        with pytest.raises(ConfigError, match="changed after it was signed, or by another key"):
            parsed(signed.replace(before, after)).verify(key.public)
    with pytest.raises(ConfigError, match="or by another key"):
        parsed(signed).verify(other.public)
    for text in (TEXT, TEXT + 'signature = ""\n', TEXT + 'signature = "%"\n'):
        with pytest.raises(ConfigError, match="has no signature.*fedprune approve --policy"):
            parsed(text).verify(key.public)
    # A comment is no content, and who signs again replaces the signature.
    parsed("# more\n" + signed).verify(key.public)
    again = signed_text(signed, parsed(signed), other)
    parsed(again).verify(other.public)
    assert again.count("signature") == 1


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"fedprune-policy"', '"other"', "needs `format`: 'fedprune-policy', got 'other'"),
        ("version = 1", "version = 2", "needs `version`"),
        ('strategies = ["fedstats", "fedhessian"]\n', "", "needs `strategies`: a list of names"),
        ('"fedhessian"', '"fedhesian"', "'fedhesian' in `strategies`.*mean 'fedhessian'"),
        ('["fedstats", "fedhessian"]', '"fedstats"', "needs `strategies`: a list of names"),
        ('["fedstats", "fedhessian"]', "[]", "needs `strategies`: a list of names"),
        ('["sums"]', '["sum"]', "needs `payloads`: a list of some of masks"),
        ("min-cohort = 3", "min-cohort = 0", "needs `min-cohort`: a whole number of at least 1"),
        ("min-cohort = 3", "min-cohort = true", "got true"),
        ("min-cohort", "min_cohort", "'min_cohort', no key.*'min-cohort'"),
        ("8.0", "0", "needs `max-eps`: a number above 0, got 0"),
        ("8.0", "nan", "needs `max-eps`"),
        ("= 500", "= -1", "needs `mb-per-day`"),
        ("= 2027-01-31", '= "soon"', "needs `expires`: a day, as 2027-01-31, got 'soon'"),
        ("= 2027-01-31", "= 2027-01-31T00:00:00", "needs `expires`"),
        ("version = 1", "version = ", "is no TOML"),
    ],
)
def test_what_is_wrong_is_told(before, after, said):
    assert before in TEXT
    with pytest.raises(ConfigError, match=said) as refused:
        parsed(TEXT.replace(before, after))
    assert "p.toml" not in refused.value.outside


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "p.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        Policy.read(path)


def test_signing_shows_what_it_allows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    key = signing_key(tmp_path / "k")
    (tmp_path / "p.toml").write_text(TEXT)
    assert main(["approve", "--policy", "p.toml", "--key", "k"]) == 0
    shown = capsys.readouterr().out
    for part in ("fedstats, fedhessian", "sums", "3 clients or more", "eps 8", "500 MB", "2027-01"):
        assert part in shown
    Policy.read(tmp_path / "p.toml").verify(key.public)
    monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT))
    assert main(["approve", "--policy", "-", "--key", "k"]) == 0
    piped = capsys.readouterr()
    parsed(piped.out).verify(key.public)
    assert "500 MB" in piped.err
    for words in (
        ["--policy", "p.toml"],
        ["--key", "k"],
        ["abcdef", "--policy", "p", "--key", "k"],
    ):
        assert main(["approve", *words]) == 2
        assert "Say either JOB" in capsys.readouterr().err
    (tmp_path / "p.toml").write_text(TEXT + "[more]\n")
    assert main(["approve", "--policy", "p.toml", "--key", "k"]) == 2
    assert main(["approve", "--policy", "none", "--key", "k"]) == 2
    assert "cannot be read" in capsys.readouterr().err
