"""How many jobs run side by side."""

from pathlib import Path

import pytest

from fedprune.cli import machine as machine_module
from fedprune.cli.machine import parallel_jobs
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError

GIGABYTE = 1_000_000_000


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processors, five gigabytes free, no GPU."""
    monkeypatch.setattr(machine_module, "usable_cpus", lambda: 8)
    monkeypatch.setattr(machine_module, "free_memory", lambda: 5 * GIGABYTE)
    monkeypatch.setattr(machine_module, "has_gpu_driver", lambda: False)


def jobs(count: int, *overrides: str) -> list:
    return [config_from_overrides(["federation.backend=inline", *overrides])] * count


def test_as_many_as_fit_into_memory(machine: None) -> None:
    assert parallel_jobs(jobs(20), None) == 4


def test_no_more_than_processors_and_jobs(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "free_memory", lambda: 100 * GIGABYTE)
    assert parallel_jobs(jobs(20), None) == 8
    assert parallel_jobs(jobs(3), None) == 3


@pytest.mark.parametrize(("file", "expected"), [("model.safetensors", 3), ("pytorch_model.bin", 1)])
def test_the_blocks_that_are_held_count(
    machine: None, tmp_path: Path, file: str, expected: int
) -> None:
    with (tmp_path / file).open("wb") as weights:
        weights.truncate(2 * GIGABYTE)  # a hole: takes no room on the disk
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 16}')
    assert parallel_jobs(jobs(20, f"model={tmp_path}"), None) == expected


@pytest.mark.parametrize("override", ["model=some/model", "federation.backend=ray"])
def test_one_at_a_time_where_nobody_knows_or_flower_shares_the_machine(
    machine: None, override: str
) -> None:
    assert parallel_jobs(jobs(20, override), None) == 1


def test_one_at_a_time_on_a_gpu(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "has_gpu_driver", lambda: True)
    assert parallel_jobs(jobs(20), None) == 1
    assert parallel_jobs(jobs(20, "pruner.device=cpu"), None) == 4


def test_at_least_one_where_memory_is_short(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "free_memory", lambda: 10)
    assert parallel_jobs(jobs(20), None) == 1


def test_the_user_s_number_counts(machine: None) -> None:
    assert parallel_jobs(jobs(20), 6) == 6
    assert parallel_jobs(jobs(2), 6) == 2
    assert parallel_jobs([], 6) == 1


def test_numbers_that_cannot_be_are_refused(machine: None) -> None:
    with pytest.raises(ConfigError, match="--jobs` must be at least 1, got 0"):
        parallel_jobs(jobs(2), 0)
    for override in ("federation.backend=ray", "federation.connection=site"):
        with pytest.raises(ConfigError, match="must be 1 for jobs on Flower's runtime, got 2"):
            parallel_jobs(jobs(2, override), 2)
