"""What `resume=FOLDER` means among overrides."""

from pathlib import Path

import pytest

from fedprune.config import (
    compose_config,
    config_from_overrides,
    find_resumption,
    resumed_config,
    resumption,
    to_yaml,
)
from fedprune.config.compose import Resumption
from fedprune.errors import ConfigError


def test_no_resume_is_no_resumption():
    assert find_resumption(["sparsity=0.6"]) is None
    assert resumption({"sparsity": 0.6, "overrides": "seed=1 'data.text_key=resume=x'"}) is None


def test_the_last_folder_counts_and_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = find_resumption(["resume=a", "strategy.wait=3", " resume = b=c "])
    assert found == Resumption(tmp_path / "b=c", ("strategy.wait=3",))
    text = "'resume=/runs/it is' federation.num_clients=2"
    assert resumption({"overrides": text, "sparsity": ""}) == Resumption(
        Path("/runs/it is"), ("federation.num_clients=2",)
    )


@pytest.mark.parametrize("path", ["", "  "])
def test_a_folder_must_be_named(path):
    with pytest.raises(ConfigError, match="`resume` must be the folder of a run"):
        find_resumption([f"resume={path}"])


@pytest.mark.parametrize(
    "run_config",
    [
        {"overrides": "resume=/x", "sparsity": 0.6},
        {"overrides": "resume=/x pruner.seq_len=64"},
        {"overrides": "resume=/x", "output-dir": "/y"},
    ],
)
def test_nothing_that_decides_about_the_result_can_be_changed(run_config):
    with pytest.raises(ConfigError, match="cannot be changed now"):
        resumption(run_config)


def test_an_unknown_key_of_the_run_config_is_told():
    with pytest.raises(ConfigError, match="not a key of the run-config"):
        resumption({"overrides": "resume=/x", "resum": "y"})


def test_the_configuration_is_the_run_s_but_for_what_may_differ():
    options = ["sparsity=0.6", "strategy=fedspallm", "data.text_key=it's ${odd}"]
    before = config_from_overrides(options)
    folder = Path("/runs/my, run")
    free = ("strategy.min_clients=1", "federation.num_clients=7", "strategy.rejoin=0")
    after = resumed_config(to_yaml(before), Resumption(folder, free))
    words = [*options, *free, f"output_dir={folder}"]
    assert after == config_from_overrides(words)
    assert after != before
    with pytest.raises(ConfigError, match="strategy.timeout"):
        resumed_config(to_yaml(before), Resumption(folder, ("strategy.timeout=never",)))


def test_a_configuration_that_is_none_is_refused():
    with pytest.raises(ConfigError):
        resumed_config("sparsity: [", Resumption(Path("/x"), ()))
    assert compose_config({}) == config_from_overrides([])


def test_where_nodes_have_the_model_from_survives_and_may_change():
    config = config_from_overrides(["model=org/name", "model.source=server"])
    assert compose_config({"model": "org/name"}).model.source == "local"
    resumed = find_resumption(["resume=/runs/a"])
    assert resumed_config(to_yaml(config), resumed).model.source == "server"
    other = find_resumption(["resume=/runs/a", "model.source=local"])
    assert resumed_config(to_yaml(config), other).model.source == "local"
    with pytest.raises(ConfigError, match=r"`model.source` must be one of 'local', 'server'"):
        config_from_overrides(["model.source=sever"])
