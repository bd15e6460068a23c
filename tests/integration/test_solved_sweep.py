"""Sweeps over collected statistics: many models by one process, each as if it were alone."""

import json
from datetime import datetime

import pytest

from fedprune.cli import main, processes
from fedprune.cli.job import prepare
from fedprune.cli.solve import plan_solve, solve_config
from fedprune.methods.statistics_folder import StatisticsFolder

SMALL = ("pruner.num_calibration_samples=2", "pruner.seq_len=32", "federation.num_clients=2")
QUICK = "evaluation.max_windows=2"


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics") / "collected"
    inline = "federation.backend=inline"
    assert main(["collect", *SMALL, QUICK, inline, f"output_dir={folder}"]) == 0
    return folder


def test_moments_serve_many_models_too(tmp_path):
    folder, out = tmp_path / "collected", tmp_path / "out"
    moments = ["strategy.statistics='columns,moments'", "federation.backend=inline"]
    assert main(["collect", *SMALL, QUICK, *moments, f"output_dir={folder}"]) == 0
    sweep = ["sweep", f"from={folder}", "pruner=sparsegpt,wanda", "sparsity=0.5,0.7", QUICK]
    assert main([*sweep, f"output_dir={out}"]) == 0
    found = {path.parent.name: perplexities(path.parent) for path in out.glob("*/results.json")}
    assert len(found) == 4
    half, more = (found[f"pruner=sparsegpt,sparsity={one}"]["pruned"] for one in ("0.5", "0.7"))
    assert half < more


@pytest.fixture
def started(monkeypatch):
    """The processes that are started for jobs."""
    found, start = [], processes._start

    def noted(threads):
        found.append(start(threads))
        return found[-1]

    monkeypatch.setattr(processes, "_start", noted)
    return found


def perplexities(folder):
    found = json.loads((folder / "results.json").read_text())["perplexity"]["stdlib"]
    return {model: found[model] for model in ("dense", "pruned")}


def test_one_process_makes_the_models_that_each_would_make_alone(collected, tmp_path, started):
    out = tmp_path / "out"
    sweep = ["sweep", f"from={collected}", "pruner=wanda,ria", "sparsity=0.4,0.6", QUICK]
    assert main([*sweep, "--jobs", "1", f"output_dir={out}"]) == 0
    assert len(started) == 1
    for pruner in ("wanda", "ria"):
        for sparsity in ("0.4", "0.6"):
            alone = tmp_path / f"{pruner}-{sparsity}"
            choice = [f"pruner={pruner}", f"sparsity={sparsity}", QUICK]
            assert main(["solve", str(collected), *choice, f"output_dir={alone}"]) == 0
            job = out / f"pruner={pruner},sparsity={sparsity}"
            masks = (alone / "model" / "fedprune" / "masks.safetensors").read_bytes()
            assert (job / "masks.safetensors").read_bytes() == masks
            assert perplexities(job) == pytest.approx(perplexities(alone), rel=1e-4)


def test_a_model_that_fails_takes_its_process_with_it_and_no_other_model(
    collected, tmp_path, started, capsys
):
    out = tmp_path / "out"
    sweep = ["sweep", f"from={collected}", "pruner=wanda,sparsegpt,ria", QUICK]
    assert main([*sweep, "--jobs", "1", f"output_dir={out}"]) == 1
    assert len(started) == 2
    assert "needs the statistic 'moments'" in " ".join(capsys.readouterr().err.split())
    assert perplexities(out / "pruner=ria")["pruned"] > 0


def test_a_process_that_dies_between_two_models_is_replaced(collected, tmp_path, started):
    found = StatisticsFolder.open(collected)
    jobs = []
    for number in range(3):
        own = solve_config(
            found, ["pruner=magnitude", QUICK, f"output_dir={tmp_path / f'{number}'}"]
        )
        jobs.append(plan_solve(found.path, own, tmp_path, datetime.now()))
        prepare(jobs[-1])
    news = processes.run_each(enumerate(jobs), 1, 1)
    ends = []
    for _, told in news:
        if isinstance(told, str):
            continue
        ends.append(told.status.completed)
        if len(ends) == 1:
            (process, _), *_ = started
            process.kill()
            process.join()
    assert ends == [True, True, True]
    assert len(started) == 2
    assert not any(process.is_alive() for process, _ in started)
