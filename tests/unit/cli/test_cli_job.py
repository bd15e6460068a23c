"""What is submitted for which configuration, and where results go."""

import shlex
from datetime import datetime
from pathlib import Path

import pytest

from fedprune.cli import job
from fedprune.cli.job import (
    named_connection,
    plan_job,
    simulation_options,
    usable_cpus,
)
from fedprune.config import RunConfig, compose_config, config_from_overrides
from fedprune.errors import ConfigError

NOW = datetime(2026, 11, 21, 13, 5, 9)


def received(planned: job.Job) -> RunConfig:
    """Return the configuration that the app composes from what it is sent."""
    return compose_config(planned.run_config)


def test_the_app_composes_what_was_checked(tmp_path: Path) -> None:
    config = config_from_overrides(["sparsity=0.6", "pruner.seq_len=64", "data.text_key=a b='c'"])
    planned = plan_job(config, tmp_path, NOW)
    arrived = received(planned)
    assert arrived.sparsity == 0.6
    assert arrived.pruner.seq_len == 64
    assert arrived.data.text_key == "a b='c'"
    assert arrived.output_dir == str(planned.folder)


def test_results_go_to_a_new_folder_below_the_user_s(tmp_path: Path) -> None:
    config = config_from_overrides(["sparsity=0.6"])
    first = plan_job(config, tmp_path, NOW).folder
    assert first == tmp_path / "runs" / "20261121-130509-fedprllm-s0.6"
    first.mkdir(parents=True)
    assert plan_job(config, tmp_path, NOW).folder == first.with_name(first.name + "-2")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("my runs/a", "{cwd}/my runs/a"), ("/abs", "/abs"), ("~/x", "{home}/x")],
)
def test_a_chosen_folder_is_relative_to_the_user_s(
    tmp_path: Path, given: str, expected: str
) -> None:
    planned = plan_job(config_from_overrides([f"output_dir={given}"]), tmp_path, NOW)
    assert str(planned.folder) == expected.format(cwd=tmp_path, home=Path.home())
    assert received(planned).output_dir == str(planned.folder)


def test_a_deployment_chooses_its_own_folder_and_size(tmp_path: Path) -> None:
    config = config_from_overrides(["federation.connection=production", "output_dir=results"])
    planned = plan_job(config, tmp_path, NOW)
    assert planned.connection == "production"
    assert planned.federation == {}
    assert received(planned).output_dir == "results"
    assert planned.folder.parent == tmp_path / "runs"


@pytest.mark.parametrize(
    ("clients", "client_cpus", "cpus", "expected"),
    [(2, 1, 16, 2), (64, 1, 16, 16), (64, 4, 16, 16), (64, 3, 16, 15), (2, 4, 16, 8), (1, 1, 1, 1)],
)
def test_one_worker_a_core_and_no_more_than_clients(
    clients: int, client_cpus: int, cpus: int, expected: int
) -> None:
    config = config_from_overrides(
        [
            f"federation.num_clients={clients}",
            "strategy.min_clients=1",
            f"federation.client_cpus={client_cpus}",
            "federation.client_gpus=0.25",
        ]
    )
    assert simulation_options(config, cpus, 1) == {
        "num-supernodes": clients,
        "client-resources-num-cpus": client_cpus,
        "client-resources-num-gpus": 0.25,
        "init-args-num-cpus": expected,
    }


def test_a_client_that_fits_nowhere_is_refused() -> None:
    config = config_from_overrides(["federation.client_cpus=3"])
    with pytest.raises(ConfigError, match=r"`federation.client_cpus` must be at most 2.*got 3"):
        simulation_options(config, 2, 0)


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_gpu_share_without_a_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    monkeypatch.setattr(job, "cuda_devices", lambda: gpus)
    config = config_from_overrides([f"federation.client_gpus={gpus + 0.5}"])
    with pytest.raises(ConfigError, match=rf"client_gpus` must be at most {gpus}.*got {gpus}.5"):
        plan_job(config, tmp_path, NOW)


def test_a_named_connection_works_from_a_folder_without_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "client_app").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr-home"))
    connection = named_connection("production")
    assert connection.name == "production"
    assert connection.folder == tmp_path / "flwr-home"
    assert not list(connection.folder.iterdir())


def test_the_run_config_is_one_string_in_shell_quotes(tmp_path: Path) -> None:
    sent = plan_job(config_from_overrides([]), tmp_path / "a b", NOW).run_config
    (text,) = sent.values()
    assert f"output_dir='{tmp_path}/a b/runs/20261121-130509-fedprllm-s0.5'" in shlex.split(
        str(text)
    )


def test_there_is_a_processor() -> None:
    assert usable_cpus() >= 1
