"""Runs whose process is killed with SIGKILL end with the bytes of runs that are left alone."""

import hashlib
import json
import random
import signal
from pathlib import Path

import pytest

from tests.support.jobs import QUIET, small_inputs
from tests.support.killed import Workshop
from tests.support.mixtures import mixture_folder

CLIENTS = 3
_MIXTURE = "model=MIXTURE"  # of eight experts a block, in place of the dense model
JOBS = {
    "votes": ("schedule.blocks_per_message=1", "evaluation.local_only=true"),
    "decoded": ("strategy.decode=true", "pruner.group=row", "schedule.blocks_per_message=2"),
    "scaled": ("schedule=iterative", "strategy.scaling=true"),
    "survivors": (
        "strategy=fedspallm",
        "pruner=sparsegpt",
        "strategy.rounds=2",
        "strategy.ramp=linear",
        "strategy.layer_fraction=0.67",
        "schedule.blocks_per_message=2",
    ),
    "sums": ("strategy=fedstats", "schedule=iterative", "allocation=owl"),
    "moments": ("strategy=fedhessian", "schedule=iterative", "pruner=sparsegpt"),
    "served worst": (
        "strategy=fedhessian",
        "pruner=sparsegpt",
        "strategy.pooling=worst",
        "schedule.blocks_per_message=2",
    ),
    "sketches": (
        "strategy=fedhessian",
        "schedule.blocks_per_message=2",
        "strategy.moments=nystrom",
        "pruner=sparsegpt",
        "strategy.max_width=32",
        "allocation=owl",
    ),
    "collected": (
        "strategy=collect",
        "strategy.statistics='columns,values,moments'",
        "schedule.blocks_per_message=1",
    ),
    "routed": (_MIXTURE, "strategy=fedstats", "schedule=iterative", "allocation=owl"),
    "experts": (_MIXTURE, "strategy=fedexperts", "sparsity=0.25", "schedule.blocks_per_message=1"),
    "experts of all": (
        _MIXTURE,
        "strategy=fedexperts",
        "sparsity=0.5",
        "strategy.pooling=worst_client",
        "schedule.blocks_per_message=2",
    ),
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    made = Workshop(tmp_path_factory.mktemp("workshop") / "log.txt")
    yield made
    made.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model and texts so small that a run takes a second."""
    folder = tmp_path_factory.mktemp("inputs")
    mixture_folder(folder / "opt-mixture")
    return small_inputs(folder, texts=12)


def bytes_of(folder: Path) -> dict[str, str]:
    """Digests of all weights and masks of an exported model, or of collected statistics."""
    files = sorted(path for path in folder.rglob("*.safetensors") if "blocks" not in path.parts)
    # Where there are no masks the smaller model is all that there is.
    assert len(files) >= 2 or "num_local_experts" in (folder / "model/config.json").read_text()
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def told(folder: Path) -> dict:
    """What the results say apart from times, machines and traffic."""
    results = json.loads((folder / "results.json").read_text())
    same = ("method", "sparsity", "perplexity", "agreement", "clients", "strategy")
    return {**{key: results[key] for key in same}, "refused": results["ledger"]["refused"]}


class Runs:
    """One configuration, run left alone and killed."""

    def __init__(self, workshop: Workshop, inputs: list[str], folder: Path, name: str) -> None:
        self.workshop = workshop
        self.folder = folder
        words = [*QUIET, *inputs, "strategy.min_clients=3", *JOBS[name]]
        self.options = " ".join(words).replace(_MIXTURE, f"{inputs[0]}-mixture")
        self.whole = folder / "whole"
        status, self.moments = self.start(self.whole)
        assert status == 0

    def start(self, folder: Path, moment: int = 0) -> tuple[int, int]:
        """Start a run, or go on with the one in the folder."""
        begun = (folder / "config.yaml").exists()
        options = f"resume={folder}" if begun else f"{self.options} output_dir={folder}"
        return self.workshop.job(options, CLIENTS, moment)

    def check_killed(self, *moments: int) -> None:
        """Kill a run at these moments of its processes, let the next finish, and compare."""
        folder = self.folder / "-".join(map(str, moments))
        for moment in moments:
            status, _ = self.start(folder, moment)
            assert status in (-signal.SIGKILL, 0)  # a later process may have less to do
        assert self.start(folder)[0] == 0
        assert bytes_of(folder) == bytes_of(self.whole)
        assert told(folder) == told(self.whole)
        assert {p.name for p in folder.iterdir()} == {p.name for p in self.whole.iterdir()}


@pytest.mark.parametrize("name", ["votes", "survivors", "moments", "collected", "routed"])
def test_a_run_that_is_killed_twice_goes_on_to_the_same_bytes(workshop, inputs, tmp_path, name):
    runs = Runs(workshop, inputs, tmp_path, name)
    draw = random.Random(name)
    first = draw.randrange(runs.moments // 4, runs.moments)
    runs.check_killed(first, draw.randrange(1, runs.moments // 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(JOBS))
def test_runs_killed_all_over_go_on_to_the_same_bytes(workshop, inputs, tmp_path, name):
    runs = Runs(workshop, inputs, tmp_path, name)
    draw = random.Random(f"more {name}")
    for moment in range(1, runs.moments + 1, max(1, runs.moments // 8)):
        runs.check_killed(moment)
    for _ in range(3):
        runs.check_killed(*(draw.randrange(1, runs.moments) for _ in range(4)))
