"""The roster: what stands in it, who signed it, and every way in which it does not hold."""

import tomllib
from dataclasses import replace

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import ConfigError
from fedprune.privacy.roster import Roster
from tests.support.signing import signed_roster, signing_key, site_keys

SITES = ("north", "south", "Ost-West 1")


@pytest.fixture(scope="module")
def keys():
    return site_keys(SITES)


@pytest.fixture
def roster(keys):
    return signed_roster(keys, min_cohort=3)


def test_is_read_as_it_was_written_and_its_order_and_comments_do_not_matter(tmp_path, roster):
    path = tmp_path / "roster.toml"
    roster.write(path)
    found = Roster.read(path)
    assert found == roster and found.signed_by == SITES
    found.verify()
    plain = tomllib.loads(path.read_text())
    plain["sites"] = dict(reversed(plain["sites"].items()))
    path.write_text("# agreed by telephone\n" + tomli_w.dumps(dict(reversed(plain.items()))))
    again = Roster.read(path)
    assert again.digest == roster.digest and set(again.signed_by) == set(SITES)


def test_nothing_of_it_changes_without_its_sites(roster, keys):
    stranger = signing_key()
    changes = [
        {"min_cohort": 2},
        {"signatures_needed": 2},
        {"keys": {**roster.keys, "south": stranger.public}},
        {"keys": {**roster.keys, "guest": stranger.public}},
        {"keys": {name: key for name, key in roster.keys.items() if name != "south"}},
        {"keys": {**roster.keys, "north": roster.keys["south"], "south": roster.keys["north"]}},
    ]
    for change in changes:
        forged = replace(roster, **change)  # keeps the signatures
        assert forged.digest != roster.digest
        assert not forged.signed_by
        with pytest.raises(ConfigError, match="do not hold: it was changed|sites and wants"):
            forged.verify()
        assert not roster.changed(**change).signatures
    assert roster.changed(min_cohort=3) == roster


def test_as_many_signatures_as_it_says(keys):
    bare = Roster({site: key.public for site, key in keys.items()}, 2)
    two = bare.signed(keys["north"]).signed(keys["south"])
    with pytest.raises(
        ConfigError, match=r"2 of the 3 signatures.*'Ost-West 1' did not sign.*roster sign"
    ):
        two.verify()
    enough = bare.changed(signatures_needed=2).signed(keys["north"]).signed(keys["south"])
    enough.verify()
    # A signature of the roster that needed all is none of the one that needs two.
    moved = replace(enough, signatures={**two.signatures})
    with pytest.raises(ConfigError, match="do not hold"):
        moved.verify()


def test_a_site_trusts_only_what_it_signed_itself(keys):
    few = Roster({site: key.public for site, key in keys.items()}, 2, signatures_needed=1)
    few = few.signed(keys["north"])
    few.verify(keys["north"].public)
    with pytest.raises(ConfigError, match="'south', did not sign the roster that it is to trust"):
        few.verify(keys["south"].public)
    with pytest.raises(ConfigError, match=r"signing key \(SHA256:.*is not in the roster"):
        few.verify(signing_key().public)
    # Somebody who can write the file but not sign makes one of strangers.
    strangers = signed_roster(site_keys(["a", "b"]))
    strangers.verify()
    with pytest.raises(ConfigError, match="not in the roster"):
        strangers.verify(keys["north"].public)


def test_signatures_of_sites_hold_for_their_site_purpose_and_run(roster, keys):
    made = keys["north"].sign(b"x", purpose="advert", run="1")
    assert roster.holds("north", made, b"x", purpose="advert", run="1")
    assert not roster.holds("south", made, b"x", purpose="advert", run="1")
    assert not roster.holds("nobody", made, b"x", purpose="advert", run="1")
    assert not roster.holds("north", made, b"x", purpose="advert", run="2")
    assert roster.site_of(keys["south"].public) == "south"
    assert roster.site_of(signing_key().public) is None


def test_who_is_not_in_it_cannot_sign(roster):
    with pytest.raises(ConfigError, match="No site of the roster has the key SHA256"):
        roster.signed(signing_key())


def test_too_few_sites_for_its_own_cohort(keys):
    with pytest.raises(ConfigError, match="has 2 sites and wants cohorts of 3"):
        signed_roster(site_keys(["a", "b"]), min_cohort=3).verify()


def changed(plain, *path_and_value):
    *path, last, value = path_and_value
    for part in path:
        plain = plain[part]
    if value is None:
        del plain[last]
    else:
        plain[last] = value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("format", "other"), "`format` must be 'fedprune-roster'"),
        (("version", 2), "`version` 1"),
        (("min_cohort", 4), "'min_cohort' is no key. Did you mean 'min-cohort'?"),
        (("min-cohort", 1), "`min-cohort` must be at least 2, got 1"),
        (("min-cohort", "3"), "`min-cohort` must be a whole number, got '3'"),
        (("min-cohort", True), "whole number, got true"),
        (("min-cohort", 10**30), "whole number"),
        (("signatures-needed", 4), "must be 1 to 3, the number of sites, got 4"),
        (("signatures-needed", 0), "must be 1 to 3"),
        (("sites", 3), r"\[sites\] must be lines"),
        (("sites", "north", 3), r"\[sites\] must be lines"),
        (("sites", "north", "ssh-rsa AAAA"), "public key of 'north' in .* must be Ed25519"),
        (("sites", "north", None), "'north' signed and is no site of it"),
        (("sites", "x" * 65, "same"), "1 to 64 printable"),
        (("sites", "a\nb", "same"), "printable characters"),
        (("sites", "twin", "same"), "'south' and 'twin' have the same key"),
        (("signatures", "north", "AAAA"), "signature of 'north' must be 64 bytes"),
        (("signatures", "north", "!"), "signature of 'north' must be 64 bytes"),
        (("signatures", ["x"]), r"\[signatures\] must be lines"),
    ],
)
def test_wrong_content_is_told(tmp_path, roster, change, said):
    path = tmp_path / "roster.toml"
    roster.write(path)
    plain = tomllib.loads(path.read_text())
    same = plain["sites"]["south"]
    changed(plain, *(same if part == "same" else part for part in change))
    path.write_text(tomli_w.dumps(plain))
    with pytest.raises(ConfigError, match=said) as refused:
        Roster.read(path)
    assert str(tmp_path) in str(refused.value)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "roster.toml"
    with pytest.raises(ConfigError, match="cannot be read: No such file.*fedprune roster add"):
        Roster.read(path)
    for data, said in (
        (b"\xff\xfe", "is no TOML"),
        (b"sites = [", "is no TOML"),
        (b"a" + b".a" * 5000 + b" = 1", "no TOML|no key"),
        (b"#" * 4_000_001, "more than 4,000,000 bytes"),
        (b"", "`format` must be"),
    ):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=said) as refused:
            Roster.read(path)
        assert str(tmp_path) not in refused.value.outside


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "roster.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        Roster.read(path)


def test_a_flipped_bit_of_a_signature_shows(roster):
    one = bytearray(roster.signatures["north"])
    one[5] ^= 1
    with pytest.raises(ConfigError, match="signatures of 'north' do not hold"):
        replace(roster, signatures={**roster.signatures, "north": bytes(one)}).verify()
