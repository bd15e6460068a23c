"""Where nodes have the model from: a choice that survives text, resumption and mistakes."""

import pytest

from fedprune.config import (
    compose_config,
    config_from_overrides,
    find_resumption,
    from_yaml,
    resumed_config,
    to_yaml,
)
from fedprune.errors import ConfigError


def test_every_node_has_the_model_unless_it_is_said():
    assert config_from_overrides([]).model.source == "local"
    assert compose_config({"model": "org/name"}).model.source == "local"


def test_the_choice_survives_text_and_resumption():
    config = config_from_overrides(["model=org/name", "model.source=server"])
    assert config.model.source == "server"
    assert from_yaml(to_yaml(config)) == config
    resumed = find_resumption(["resume=/runs/a"])
    assert resumed_config(to_yaml(config), resumed).model.source == "server"


def test_a_run_may_go_on_with_another():
    config = config_from_overrides([])
    resumed = find_resumption(["resume=/runs/a", "model.source=server"])
    assert resumed_config(to_yaml(config), resumed).model.source == "server"


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match=r"`model.source` must be one of 'local', 'server'"):
        config_from_overrides(["model.source=sever"])
