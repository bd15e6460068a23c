"""A method of another package brings its keys, found when its name is asked for."""

import shlex
import sys

import pytest

from fedprune.config import (
    compose_config,
    config_from_overrides,
    from_yaml,
    schema,
    to_overrides,
    to_yaml,
)
from fedprune.errors import ConfigError

CONFIG = """
from collections.abc import Iterator
from typing import Annotated, Literal
from pydantic import Field
from fedprune.config import RunConfig, StrategyConfig

class CONFIG(StrategyConfig):
    threshold: Annotated[float, Field(gt=0, le=9)] = 2.0
    ties: Literal["first", "last"] = "first"

    def check(self, run: RunConfig) -> Iterator[str]:
        if self.threshold > 5 and run.schedule.name == "iterative":
            yield "`strategy.threshold` must be at most 5 with schedule=iterative, got much."
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package on the path as pip would have installed it."""

    def put(config: str, entry: str = "mine = my_method") -> None:
        (tmp_path / "my_method").mkdir()
        (tmp_path / "my_method" / "__init__.py").touch()
        (tmp_path / "my_method" / "config.py").write_text(config)
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fedprune.methods]\n{entry}\n")

    monkeypatch.syspath_prepend(tmp_path)
    yield put
    schema._STRATEGIES.pop("mine", None)
    for name in ("my_method", "my_method.config"):
        sys.modules.pop(name, None)


def test_an_installed_method_has_its_keys(install):
    with pytest.raises(ConfigError, match="`strategy` must be one of .*, got 'mine'"):
        config_from_overrides(["strategy=mine"])
    install(CONFIG)
    compose_config({})
    assert "my_method" not in sys.modules  # nobody has asked for it
    config = config_from_overrides(["strategy=mine", "strategy.threshold=3"])
    assert (config.strategy.name, config.strategy.threshold) == ("mine", 3.0)
    assert (config.strategy.ties, config.strategy.min_clients) == ("first", 2)
    assert (config.strategy.rounds, config.strategy.ramp) == (1, "none")
    assert from_yaml(to_yaml(config)) == config
    assert compose_config({"overrides": shlex.join(to_overrides(config))}) == config
    assert compose_config({"overrides": "strategy.name=mine"}).strategy.threshold == 2.0


def test_its_mistakes_are_told_like_ours(install):
    install(CONFIG)
    for overrides, words in {
        "strategy.threshold=0": "`strategy.threshold` must be above 0 and at most 9, got 0.",
        "strategy.ties=index": "`strategy.ties` must be one of 'first', 'last', got 'index'.",
        "strategy.group=row": "`strategy.group` is a key of fedprllm; mine has `threshold` and",
        "strategy.treshold=1": "Did you mean 'strategy.threshold'",
        "strategy.threshold=6 schedule=iterative": "must be at most 5 with schedule=iterative",
    }.items():
        with pytest.raises(ConfigError) as caught:
            compose_config({"overrides": f"strategy=mine {overrides}"})
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="`strategy.threshold` is a key of mine; fedstats has"):
        compose_config({"overrides": "strategy=fedstats strategy.threshold=1"})


@pytest.mark.parametrize(
    ("config", "entry", "words"),
    [
        ("import nothing_like_it", "mine = my_method", "no `config.CONFIG`: .*nothing_like_it"),
        ("", "mine = my_method", "no `config.CONFIG`"),
        ("CONFIG = 3", "mine = my_method", "is no StrategyConfig"),
        ("", "mine = my_method:x", "cannot be imported"),
        ("x = 1", "mine = my_method.config:x", "names no package"),
    ],
)
def test_plugins_that_are_no_method(install, config, entry, words):
    install(config, entry)
    with pytest.raises(ConfigError, match=words):
        config_from_overrides(["strategy=mine"])
