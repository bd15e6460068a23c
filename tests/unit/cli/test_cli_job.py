"""What is submitted for which configuration, and where results go."""

import shlex
from datetime import datetime
from pathlib import Path

import pytest

from fedprune.cli import job
from fedprune.cli.job import check_inputs, named_connection, plan_job, simulation_options
from fedprune.cli.machine import Resources, usable_cpus
from fedprune.config import RunConfig, compose_config, config_from_overrides
from fedprune.errors import DataError, ModelError

NOW = datetime(2026, 11, 21, 13, 5, 9)


def received(planned: job.Job) -> RunConfig:
    """Return the configuration that the app composes from what it is sent."""
    return compose_config(planned.run_config)


def test_the_app_composes_what_was_checked(tmp_path):
    config = config_from_overrides(["sparsity=0.6", "pruner.seq_len=64", "data.text_key=a b='c'"])
    planned = plan_job(config, tmp_path, NOW)
    arrived = received(planned)
    assert arrived.sparsity == 0.6
    assert arrived.pruner.seq_len == 64
    assert arrived.data.text_key == "a b='c'"
    assert arrived.output_dir == str(planned.folder)


def test_results_go_to_a_new_folder_below_the_user_s(tmp_path):
    config = config_from_overrides(["sparsity=0.6"])
    first = plan_job(config, tmp_path, NOW).folder
    assert first == tmp_path / "runs" / "20261121-130509-fedprllm-s0.6"
    first.mkdir(parents=True)
    assert plan_job(config, tmp_path, NOW).folder == first.with_name(first.name + "-2")


@pytest.mark.parametrize(
    ("given", "expected"), [("my runs/a", "{cwd}/my runs/a"), ("/abs", "/abs"), ("~/x", "{home}/x")]
)
def test_a_chosen_folder_is_relative_to_the_user_s(tmp_path, given, expected):
    planned = plan_job(config_from_overrides([f"output_dir={given}"]), tmp_path, NOW)
    assert str(planned.folder) == expected.format(cwd=tmp_path, home=Path.home())
    assert received(planned).output_dir == str(planned.folder)


def test_a_deployment_chooses_its_own_folder_and_size(tmp_path):
    config = config_from_overrides(["federation.connection=production", "output_dir=results"])
    planned = plan_job(config, tmp_path, NOW)
    assert planned.connection == "production"
    assert planned.federation == {}
    assert received(planned).output_dir == "results"
    assert planned.folder.parent == tmp_path / "runs"


def test_flower_is_told_of_what_the_workers_take(tmp_path):
    config = config_from_overrides(["federation.num_clients=64", "strategy.min_clients=1"])
    assert simulation_options(config, Resources(5, 3, 0.25, "")) == {
        "num-supernodes": 64,
        "client-resources-num-cpus": 3,
        "client-resources-num-gpus": 0.25,
        "init-args-num-cpus": 15,
    }


def test_a_simulation_says_how_it_shares_the_machine(tmp_path):
    planned = plan_job(config_from_overrides([]), tmp_path, NOW)
    assert "federation.client_cpus" in planned.note
    assert planned.federation["client-resources-num-gpus"] == 0.0
    assert not plan_job(config_from_overrides(["federation.backend=inline"]), tmp_path, NOW).note


def test_gpus_are_looked_for_where_they_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "has_gpu_driver", lambda: True)
    monkeypatch.setattr("fedprune.cli.machine.free_gpu_memory", lambda: (80_000_000_000,))

    def share(*overrides: str) -> object:
        planned = plan_job(config_from_overrides(overrides), tmp_path, NOW)
        return planned.federation["client-resources-num-gpus"]

    assert share() == round(1 / usable_cpus(), 2)
    assert share("federation.client_gpus=1") == 1
    assert share("federation.client_gpus=0") == share("pruner.device=cpu") == 0


def test_a_named_connection_works_from_a_folder_without_packages(tmp_path, monkeypatch):
    (tmp_path / "client_app").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr-home"))
    connection = named_connection("production")
    assert connection.name == "production"
    assert connection.folder == tmp_path / "flwr-home"
    assert not list(connection.folder.iterdir())


def test_the_run_config_is_one_string_in_shell_quotes(tmp_path):
    sent = plan_job(config_from_overrides([]), tmp_path / "a b", NOW).run_config
    (text,) = sent.values()
    assert f"output_dir='{tmp_path}/a b/runs/20261121-130509-fedprllm-s0.5'" in shlex.split(
        str(text)
    )


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("model=/no/such/model", ModelError, "'/no/such/model' is not a folder"),
        ("data=/no/such/texts", DataError, "`data.path` must be a file or folder"),
        ("data.heldout_path=/no/texts", DataError, "`data.heldout_path` must be"),
    ],
)
def test_what_is_missing_here_is_told_at_once(override, error, words):
    with pytest.raises(error, match=words):
        check_inputs(config_from_overrides([override]))


def test_hub_ids_and_the_paths_of_other_machines_are_left_alone(tmp_path):
    check_inputs(config_from_overrides([]))
    check_inputs(config_from_overrides(["model=org/name", "data=org/texts"]))
    there = ["federation.connection=site", "model=/there/model", "data=/there/texts"]
    check_inputs(config_from_overrides(there))
    (tmp_path / "a.txt").write_text("x")
    check_inputs(config_from_overrides([f"data={tmp_path}"]))


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="weights"):
        check_inputs(config_from_overrides([f"model={tmp_path}"]))
