"""The file of signatures: read as written, damaged or not; the oracle is the signature itself."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import ModelError
from fedprune.privacy.attestation import (
    ANSWER,
    MODEL,
    Signatures,
    SignedAnswer,
    SiteSignatures,
    answer_statement,
    digests_of,
    judge,
)
from tests.support.signing import signed_roster, site_keys

JOB, DIGEST = "ab" * 16, "cd" * 32


def signed(key, payloads, job=JOB) -> SiteSignatures:
    digests = digests_of(payloads)
    answer = key.sign(answer_statement(digests), purpose=ANSWER, run=job)
    model = key.sign(bytes.fromhex(DIGEST), purpose=MODEL, run=job)
    return SiteSignatures((SignedAnswer(digests, answer),), {MODEL: model})


@pytest.fixture
def keys():
    return site_keys(["north", "south"])


@pytest.fixture
def found(keys):
    return Signatures(JOB, {key.public: signed(key, {0: b"x", 11: b"y"}) for key in keys.values()})


def test_is_read_as_written(tmp_path, found):
    found.write(tmp_path / "s.json")
    assert Signatures.read(tmp_path / "s.json") == found
    assert Signatures.read(tmp_path / "none") is None


def test_what_is_signed_is_the_hashes_by_block():
    statement = answer_statement(digests_of({11: b"y", 2: b"x"}))
    assert json.loads(statement) == {
        "2": hashlib.sha256(b"x").hexdigest(),
        "11": hashlib.sha256(b"y").hexdigest(),
    }
    assert statement == answer_statement(digests_of({2: b"x", 11: b"y"}))


def test_judged_by_run_result_and_key(keys, found):
    roster = signed_roster(keys)
    fine = judge(found, MODEL, DIGEST, JOB, roster)
    assert len(fine.holds) == 2 and not fine.wrong
    assert len(judge(found, MODEL, "00" * 32, JOB, roster).wrong) == 2
    assert judge(found, MODEL, DIGEST, "cd" * 16, roster).wrong[0].startswith("its signatures are")
    only = signed_roster({"north": keys["north"], **site_keys(["west"])})
    verdict = judge(found, MODEL, DIGEST, JOB, only)
    assert verdict.wrong[0].endswith("is outside the roster")
    assert "'west' signed nothing of it." in verdict.holds


@pytest.mark.parametrize("at", [0, 20, 40, 63])
def test_a_flipped_bit_of_any_signature_shows(tmp_path, keys, found, at):
    found.write(tmp_path / "s.json")
    plain = json.loads((tmp_path / "s.json").read_text())
    one = plain["sites"][0]["answers"][0]["digests"]
    one["0"] = f"{one['0'][:at]}{'1' if one['0'][at] == '0' else '0'}{one['0'][at + 1 :]}"
    (tmp_path / "s.json").write_text(json.dumps(plain))
    verdict = judge(Signatures.read(tmp_path / "s.json"), MODEL, DIGEST, JOB, signed_roster(keys))
    assert verdict.wrong == ("'north' did not sign 1 of the 1 answers that are called its",)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "x"},
        {"version": 2},
        {"job": 3},
        {"sites": 3},
        {"sites": [{}]},
        {"sites": "twice"},
        {"sites": [{"key": "ssh-rsa A", "answers": [], "results": {}}]},
    ],
)
def test_damage_is_told(tmp_path, found, change):
    found.write(tmp_path / "s.json")
    plain = json.loads((tmp_path / "s.json").read_text())
    if change == {"sites": "twice"}:
        change = {"sites": [plain["sites"][0]] * 2}
    (tmp_path / "s.json").write_text(json.dumps(plain | change))
    with pytest.raises(ModelError, match="is damaged"):
        Signatures.read(tmp_path / "s.json")


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.text(max_size=5),
        lambda some: st.dictionaries(st.sampled_from(["format", "sites", "job"]), some),
        max_leaves=5,
    ).map(lambda plain: json.dumps(plain).encode())
)
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "s.json"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        Signatures.read(path)
