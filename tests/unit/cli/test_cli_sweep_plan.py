"""The jobs of a sweep: who measures baselines, and what counts as done."""

import json
from pathlib import Path

import pytest

from fedprune.cli.sweep_plan import SweepJob, cut_off, finished, plan_sweep, read_sweep
from fedprune.config import from_yaml, replace, to_yaml
from fedprune.errors import ConfigError
from fedprune.results.environment import source_digest


def plan(folder: Path, *arguments: str) -> list[SweepJob]:
    return plan_sweep(read_sweep(arguments), folder)


def test_baselines_are_measured_once_for_equal_clients(tmp_path: Path) -> None:
    jobs = plan(tmp_path, "sparsity=0.3,0.5", "strategy.group=layer,row", "seed=0,1")
    assert [job.baseline for job in jobs] == [0, 1, 0, 1, 4, 5, 4, 5]
    for place, job in enumerate(jobs):
        evaluation = job.config.evaluation
        assert evaluation.local_only == evaluation.centralized == (place == job.baseline)


@pytest.mark.parametrize(
    "swept",
    ["pruner.group=row,layer", "pruner=wanda,magnitude", "federation.num_clients=2,3"],
)
def test_other_clients_have_their_own_baselines(tmp_path: Path, swept: str) -> None:
    assert [job.baseline for job in plan(tmp_path, swept)] == [0, 1]


def test_a_one_shot_job_measures_them_for_iterative_ones(tmp_path: Path) -> None:
    jobs = plan(tmp_path, "schedule=iterative,one_shot", "strategy.scaling=true,false")
    assert {job.baseline for job in jobs} == {2}
    assert jobs[2].config.schedule.name == "one_shot"


@pytest.mark.parametrize(
    "swept",
    [
        ("strategy=fedstats,fedprllm",),
        ("strategy=fedstats,fedspallm", "schedule=iterative,one_shot"),
        ("schedule.prefix=dense,local",),
        ("strategy=fedspallm", "strategy.rounds=2,1"),
        ("strategy=fedspallm", "strategy.layer_fraction=0.5,1.0"),
        ("strategy=fedhessian,fedspallm", "pruner=sparsegpt"),
    ],
)
def test_clients_that_prune_everything_by_themselves_measure_them(tmp_path, swept) -> None:
    jobs = plan(tmp_path, *swept)
    assert {job.baseline for job in jobs} == {len(jobs) - 1}


def test_jobs_run_inline_unless_told_otherwise(tmp_path: Path) -> None:
    assert {j.config.federation.backend for j in plan(tmp_path, "seed=0,1")} == {"inline"}
    ray = plan(tmp_path, "seed=0,1", "federation.backend=ray")
    assert {job.config.federation.backend for job in ray} == {"ray"}


def test_folders_are_named_by_the_settings(tmp_path: Path) -> None:
    jobs = plan(tmp_path, "sparsity=0.3,0.5", "seed=0,1")
    assert jobs[0].folder == tmp_path / "sparsity=0.3,seed=0"
    assert jobs[0].config.output_dir == str(jobs[0].folder)
    odd = plan(tmp_path, "data=/a b,/a-b", "data.text_key=text")
    assert len({job.folder for job in odd}) == 2
    assert all(" " not in job.folder.name and "/" not in job.folder.name for job in odd)


def test_a_wrong_job_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The job .*sparsity=1.5.* cannot run"):
        plan(tmp_path, "sparsity=0.5,1.5")
    assert not list(tmp_path.iterdir())


def done(job: SweepJob, **changes: object) -> None:
    job.folder.mkdir(exist_ok=True)
    config = replace(job.config, **changes)  # type: ignore[arg-type]
    (job.folder / "config.yaml").write_text(to_yaml(config))
    (job.folder / "results.json").write_text(json.dumps({"seed": 1}))


def test_done_is_what_has_results_of_the_same_settings(tmp_path: Path) -> None:
    job = plan(tmp_path, "sparsity=0.3,0.5")[0]
    assert finished(job) is None
    federation = replace(job.config.federation, backend="ray", client_cpus=2)
    done(job, federation=federation, output_dir="/elsewhere")
    assert finished(job) == {"seed": 1}
    (job.folder / "results.json").unlink()
    assert finished(job) is None


def test_missing_baselines_are_a_reason_to_run_again(tmp_path: Path) -> None:
    first, second = plan(tmp_path, "strategy.group=layer,row")
    done(first, evaluation=second.config.evaluation)
    assert finished(first) is None
    done(second, evaluation=first.config.evaluation)
    assert finished(second) == {"seed": 1}


def test_results_of_other_settings_are_left_alone(tmp_path: Path) -> None:
    job = plan(tmp_path, "sparsity=0.3,0.5")[0]
    done(job, seed=7)
    with pytest.raises(ConfigError, match=r"another `seed` \(7, not 0\)"):
        finished(job)
    (job.folder / "config.yaml").write_text("old: 1\n")
    with pytest.raises(ConfigError, match="another version"):
        finished(job)
    with pytest.raises(ConfigError):
        from_yaml("old: 1\n")


def begun(folder: Path, text: str, code: str) -> None:
    """Leave what a killed run leaves."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    (folder / "state" / "run.json").write_text(json.dumps({"identity": {"code": code}}))


def test_a_job_that_was_cut_off_goes_on_only_as_it_was(tmp_path: Path) -> None:
    job = plan(tmp_path, "sparsity=0.3,0.5")[0]
    assert not cut_off(job)
    begun(job.folder, to_yaml(job.config), source_digest())
    assert cut_off(job)
    begun(job.folder, to_yaml(job.config), "other sources")
    assert not cut_off(job)
    begun(job.folder, to_yaml(replace(job.config, seed=7)), source_digest())
    assert not cut_off(job)
    begun(job.folder, "damaged: true\n", source_digest())
    assert not cut_off(job)


@pytest.mark.parametrize("name", ["failure.json", "results.json"])
def test_a_job_that_ended_does_not_go_on(tmp_path: Path, name: str) -> None:
    job = plan(tmp_path, "sparsity=0.3,0.5")[0]
    begun(job.folder, to_yaml(job.config), source_digest())
    (job.folder / name).write_text("{}")
    assert not cut_off(job)
