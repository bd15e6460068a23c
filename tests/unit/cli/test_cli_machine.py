"""How a machine is shared among simulated clients, and how many jobs run side by side."""

import json
from pathlib import Path

import pytest

from fedprune.cli import machine as machine_module
from fedprune.cli.machine import (
    Machine,
    Resources,
    choose_resources,
    model_bytes,
    parallel_jobs,
    usable_cpus,
    worker_bytes,
)
from fedprune.config import ModelConfig, config_from_overrides
from fedprune.errors import ConfigError

GB = 1_000_000_000


def chosen(machine: Machine, *overrides: str, clients: int = 64) -> Resources:
    config = config_from_overrides(
        [f"federation.num_clients={clients}", "strategy.min_clients=1", *overrides]
    )
    return choose_resources(config, machine)


def shared(machine: Machine, *overrides: str, clients: int = 64) -> tuple[int, int, float]:
    found = chosen(machine, *overrides, clients=clients)
    return found.workers, found.client_cpus, found.client_gpus


def sparse_file(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@pytest.fixture
def large(tmp_path):
    """A folder that looks like a model of 32 GB with 32 blocks."""
    for number in (1, 2):
        sparse_file(tmp_path / f"model-{number}.safetensors", 16 * GB)
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 32}))
    return tmp_path


@pytest.mark.parametrize(
    ("clients", "machine", "expected"),
    [
        (64, Machine(16, 100 * GB), (16, 1, 0.0)),  # one a core
        (2, Machine(16, 100 * GB), (2, 1, 0.0)),  # no more than clients
        (1, Machine(1, 100 * GB), (1, 1, 0.0)),
        (64, Machine(16, 6 * GB), (4, 4, 0.0)),  # 4.8 of 6 GB hold four of 1.2
        (64, Machine(16, 4 * GB), (2, 8, 0.0)),
        (64, Machine(7, 4 * GB), (2, 3, 0.0)),
        (64, Machine(16, 0), (1, 16, 0.0)),  # one is always tried
    ],
)
def test_workers_follow_from_cores_clients_and_memory(clients, machine, expected):
    assert shared(machine, clients=clients) == expected


def test_a_worker_holds_a_few_blocks(large):
    model = config_from_overrides([f"model={large}"]).model
    assert worker_bytes(model) == int(1.2 * GB) + 3 * GB
    assert shared(Machine(16, 21 * GB), f"model={large}") == (4, 4, 0.0)  # 16.8 GB / 4.2
    for path in large.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))  # cannot be read block by block
    assert worker_bytes(model) == int(1.2 * GB) + 32 * GB


def test_without_a_readable_count_of_blocks_the_model_counts_whole(large):
    (large / "config.json").write_text("[]")
    model = config_from_overrides([f"model={large}"]).model
    assert worker_bytes(model) == int(1.2 * GB) + 3 * 32 * GB


def test_a_model_elsewhere_has_no_known_size():
    model = config_from_overrides(["model=facebook/opt-125m"]).model
    assert worker_bytes(model) is None
    found = chosen(Machine(8, GB), "model=facebook/opt-125m")
    assert found.workers == 8 and "an unknown amount" in found.reason


def test_gpus_are_shared_as_their_memory_allows():
    assert shared(Machine(16, 100 * GB, (80 * GB,))) == (16, 1, 0.06)
    assert shared(Machine(16, 100 * GB, (6 * GB,))) == (4, 1, 0.25)
    assert shared(Machine(16, 100 * GB, (6 * GB, 6 * GB))) == (8, 1, 0.25)
    assert shared(Machine(16, 100 * GB, (GB,))) == (1, 1, 1.0)
    assert shared(Machine(16, 100 * GB, (80 * GB,)), "model=a/b") == (1, 1, 1.0)


def test_numbers_of_the_configuration_win():
    tight = Machine(16, 0, (80 * GB, 80 * GB))
    asked = ("federation.client_cpus=3", "federation.client_gpus=0.5")
    assert shared(tight, *asked) == (4, 3, 0.5)
    assert shared(tight, "federation.client_cpus=3", "federation.client_gpus=0") == (5, 3, 0.0)


def test_the_reason_has_the_figures():
    reason = chosen(Machine(16, 6 * GB)).reason
    assert "4 simulated clients at a time, 4 CPU core(s)" in reason
    assert "16 cores" in reason and "6.0 GB free, about 1.2 GB" in reason


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("federation.client_cpus=3", r"`federation.client_cpus` must be at most 2.*got 3"),
        ("federation.client_gpus=1.5", r"`federation.client_gpus` must be at most 1.*got 1.5"),
    ],
)
def test_what_fits_nowhere_is_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        chosen(Machine(2, GB, (GB,)), override)


def test_this_machine_has_something():
    assert usable_cpus() >= 1
    demo: ModelConfig = config_from_overrides([]).model
    assert model_bytes(demo) == 0


@pytest.fixture
def machine(monkeypatch):
    """Eight processors, five gigabytes free, no GPU; returns what makes it another one."""

    def become(**found):
        for name, value in found.items():
            monkeypatch.setattr(machine_module, name, lambda value=value: value)

    become(usable_cpus=8, free_memory=5 * GB, has_gpu_driver=False)
    return become


def jobs(count: int, *overrides: str) -> list:
    return [config_from_overrides(["federation.backend=inline", *overrides])] * count


@pytest.mark.parametrize(
    ("count", "asked", "override", "found", "expected"),
    [
        (20, None, "seed=0", {}, 4),  # as many as fit into memory
        (20, None, "seed=0", {"free_memory": 100 * GB}, 8),  # no more than processors
        (3, None, "seed=0", {"free_memory": 100 * GB}, 3),  # nor than jobs
        (20, None, "seed=0", {"free_memory": 10}, 1),
        (20, None, "seed=0", {"has_gpu_driver": True}, 1),
        (20, None, "pruner.device=cpu", {"has_gpu_driver": True}, 4),
        (20, None, "model=some/model", {}, 1),  # nobody knows how large
        (20, None, "federation.backend=ray", {}, 1),  # Flower shares the machine
        (20, 6, "seed=0", {}, 6),  # the user's number counts
        (2, 6, "seed=0", {}, 2),
        (0, 6, "seed=0", {}, 1),
    ],
)
def test_how_many_jobs_run_side_by_side(machine, count, asked, override, found, expected):
    machine(**found)
    assert parallel_jobs(jobs(count, override), asked) == expected


@pytest.mark.parametrize(("file", "expected"), [("model.safetensors", 3), ("pytorch_model.bin", 1)])
def test_the_blocks_that_are_held_count(machine, tmp_path, file, expected):
    sparse_file(tmp_path / file, 2 * GB)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 16}')
    assert parallel_jobs(jobs(20, f"model={tmp_path}"), None) == expected


def test_numbers_that_cannot_be_are_refused(machine):
    with pytest.raises(ConfigError, match="--jobs` must be at least 1, got 0"):
        parallel_jobs(jobs(2), 0)
    for override in ("federation.backend=ray", "federation.connection=site"):
        with pytest.raises(ConfigError, match="must be 1 for jobs on Flower's runtime, got 2"):
            parallel_jobs(jobs(2, override), 2)
