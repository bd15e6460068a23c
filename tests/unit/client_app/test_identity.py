"""A node's key and roster: what its operator named, and what it does not accept of it."""

import pytest

from client_app.node import Identity
from client_app.node_config import NodeConfig
from fedprune.errors import ConfigError
from fedprune.privacy.roster import Roster
from tests.support.signing import signed_roster, signing_key, site_keys


def settings(**values) -> NodeConfig:
    names = {key.replace("_", "-"): str(value) for key, value in values.items()}
    return NodeConfig.read({"partition-id": 0, **names})


@pytest.fixture
def keys(tmp_path):
    return site_keys(["north", "south"], tmp_path)


@pytest.fixture
def roster(tmp_path, keys):
    path = tmp_path / "roster.toml"
    signed_roster(keys).write(path)
    return path


def test_what_nobody_named_is_none():
    assert Identity.of(settings()) == Identity(None, None)


def test_a_key_alone_trusts_nobody(tmp_path, keys):
    found = Identity.of(settings(signing_key=tmp_path / "north.key"))
    assert found.key is not None and found.key.public == keys["north"].public
    assert found.roster is None


def test_a_roster_that_its_site_signed(tmp_path, roster):
    for site in ("", "north"):
        found = Identity.of(settings(signing_key=tmp_path / "north.key", roster=roster, site=site))
        assert found.roster == Roster.read(roster)


def test_a_roster_needs_a_key():
    (problem,) = settings(roster="r.toml").problems
    assert "`roster` in the node's --node-config needs `signing-key`" in problem


def test_rosters_that_a_node_does_not_trust(tmp_path, roster, keys):
    signing_key(tmp_path / "guest.key")
    named = {"signing_key": tmp_path / "north.key", "roster": roster}
    with pytest.raises(ConfigError, match="not in the roster"):
        Identity.of(settings(**named | {"signing_key": tmp_path / "guest.key"}))
    with pytest.raises(ConfigError, match="`site` .* is 'south', the roster calls .* 'north'"):
        Identity.of(settings(**named, site="south"))
    Roster.read(roster).changed(min_cohort=3).write(roster)
    with pytest.raises(ConfigError, match="has 2 sites and wants cohorts of 3"):
        Identity.of(settings(**named))
    one = Roster({name: key.public for name, key in keys.items()}, signatures_needed=1)
    one.signed(keys["south"]).write(roster)
    with pytest.raises(ConfigError, match="'north', did not sign the roster"):
        Identity.of(settings(**named))
    with pytest.raises(ConfigError, match="roster .* cannot be read") as refused:
        Identity.of(settings(**named | {"roster": tmp_path / "none"}))
    assert str(tmp_path) not in refused.value.outside
