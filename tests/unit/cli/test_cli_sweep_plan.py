"""What a sweep's file and command mean, who measures baselines, and what counts as done."""

import json
from pathlib import Path

import pytest

from fedprune.cli.sweep_plan import SweepJob, cut_off, finished, plan_sweep, read_sweep
from fedprune.config import from_yaml, replace, to_yaml
from fedprune.errors import ConfigError
from fedprune.results.environment import source_digest
from fedprune.results.sweep import Axes

_FILE = """
experiment: demo
grid:
  strategy.group: [layer, row]
  strategy.scaling: [false, true]
seeds: [0, 1]
table: {rows: [strategy.group], columns: [strategy.scaling]}
"""
_LINKED = """
grid: {sparsity: [0.5]}
linked:
  - {federation.num_clients: 2, strategy.min_clients: 2}
  - {federation.num_clients: 4, strategy.min_clients: 4}
seeds: [0, 1]
table: {rows: [federation.num_clients]}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_lists_of_a_command_are_crossed_seeds_innermost():
    sweep = read_sweep(["seed=0,1", "sparsity=0.3,0.5", "strategy.group=layer,row", "pruner=wanda"])
    assert sweep.fixed == ("pruner=wanda",)
    expected = [
        {"sparsity": s, "strategy.group": g, "seed": seed}
        for s in ("0.3", "0.5")
        for g in ("layer", "row")
        for seed in ("0", "1")
    ]
    assert sweep.points() == expected
    assert sweep.axes == Axes(("strategy.group",), ("sparsity",))
    assert sweep.title == "sparsity, strategy.group"


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("sparsity=choice(0.3,0.5)", ("0.3", "0.5")),
        ("seed=range(0,3)", ("0", "1", "2")),
        ("pruner.pattern='2:4','4:8'", ("2:4", "4:8")),
    ],
)
def test_hydras_ways_to_write_several_values(override, values):
    (found,) = read_sweep([override]).grid.values()
    assert found == values


def test_a_quoted_comma_is_no_list():
    sweep = read_sweep(["seed=0,1", "data.path='/a,b'", "model=/my models/a=b"])
    assert list(sweep.grid) == ["seed"]
    assert sweep.fixed == ("data.path='/a,b'", "model=/my models/a=b")


def test_a_file_and_what_replaces_its_values(tmp_path):
    path = written(tmp_path, _FILE)
    sweep = read_sweep([path])
    assert sweep.fixed == ("experiment=demo",)
    assert len(sweep.points()) == 8
    assert sweep.points()[0] == {
        "strategy.group": "layer",
        "strategy.scaling": "false",
        "seed": "0",
    }
    assert sweep.axes == Axes(("strategy.group",), ("strategy.scaling",))
    smaller = read_sweep([path, "seed=5", "strategy.group=row", "sparsity=0.6,0.7"])
    assert smaller.fixed == ("experiment=demo", "seed=5", "strategy.group=row")
    assert smaller.axes == Axes(("sparsity",), ("strategy.scaling",))
    assert len(smaller.points()) == 4


def test_linked_keys_change_together(tmp_path):
    sweep = read_sweep([written(tmp_path, _LINKED)])
    clients = [(p["federation.num_clients"], p["strategy.min_clients"]) for p in sweep.points()]
    assert clients == [("2", "2"), ("2", "2"), ("4", "4"), ("4", "4")]
    # The number of clients tells the entries apart: the other key needs no row.
    assert sweep.axes == Axes(("federation.num_clients",), ("sparsity",))


def test_a_method_s_keys_stand_only_where_the_method_does(tmp_path):
    text = (
        "linked: [{strategy: fedprllm, strategy.scaling: true}, {strategy: fedprllm, "
        "strategy.scaling: false}, {strategy: fedstats}]\ntable: {rows: [strategy]}"
    )
    sweep = read_sweep([written(tmp_path, text)])
    assert sweep.points()[2] == {"strategy": "fedstats"}
    assert sweep.keys == ("strategy", "strategy.scaling") == sweep.axes.rows


def test_names():
    def name(*arguments: str) -> str:
        return read_sweep(arguments).name

    assert name("sparsity=0.3,0.5") == name("sparsity=0.3,0.5,0.7")
    assert name("sparsity=0.3,0.5") == name("sparsity=0.3,0.5", "output_dir=x")
    assert name("sparsity=0.3,0.5") != name("sparsity=0.3,0.5", "pruner=magnitude")
    assert name("sparsity=0.3,0.5").startswith("sparsity-")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grids: {}", "`grids` is not a key of a sweep. Did you mean 'grid'?"),
        ("grid: [1]", "`grid` must be a mapping"),
        ("grid: {sparsity: 0.5}", "`grid.sparsity` must be a list"),
        ("grid: {sparsity: [[1]]}", "`grid.sparsity` must be a list"),
        ("seeds: 3", "`seeds` must be a list"),
        ("linked: {a: 1}", "`linked` must be a list of mappings"),
        ("{grid: {a: [1]}, linked: [{b: 1}, {a: 1}]}", "no key that `grid` sets"),
        ("{grid: {sparsity: [1]}, table: {rows: [sparsty]}}", "'sparsty' is not swept"),
        ("table: {row: []}", "`rows` and `columns`"),
        ("- a", "must be a mapping"),
        ("a: [", "must be YAML"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        read_sweep([written(tmp_path, text)])
    assert words in str(caught.value)


def test_wrong_commands(tmp_path):
    with pytest.raises(ConfigError, match="no sweep: it is neither"):
        read_sweep(["nothing_like_it"])
    with pytest.raises(ConfigError, match="several values"):
        read_sweep(["sparsity=0.5"])
    with pytest.raises(ConfigError, match="is set by `linked`"):
        read_sweep([written(tmp_path, _LINKED), "strategy.min_clients=1"])


def test_a_group_that_the_command_fixes_needs_no_row():
    sweep = read_sweep(["experiment=beyond_main", "allocation=uniform", "data.partition=iid"])
    assert "allocation" not in sweep.axes.rows and "data.partition" not in sweep.axes.rows
    assert "allocation=uniform" in sweep.fixed


def plan(folder: Path, *arguments: str) -> list[SweepJob]:
    return plan_sweep(read_sweep(arguments), folder)


def test_baselines_are_measured_once_for_equal_clients(tmp_path):
    asked = ("strategy.group=layer,row", "seed=0,1", "evaluation.no_client=true")
    jobs = plan(tmp_path, "sparsity=0.3,0.5", *asked)
    assert [job.baseline for job in jobs] == [0, 1, 0, 1, 4, 5, 4, 5]
    for place, job in enumerate(jobs):
        evaluation = job.config.evaluation
        assert evaluation.local_only == evaluation.centralized == (place == job.baseline)
        assert evaluation.no_client == evaluation.centralized


@pytest.mark.parametrize(
    "swept", ["pruner.group=row,layer", "pruner=wanda,magnitude", "federation.num_clients=2,3"]
)
def test_other_clients_have_their_own_baselines(tmp_path, swept):
    assert [job.baseline for job in plan(tmp_path, swept)] == [0, 1]


def test_a_one_shot_job_measures_them_for_iterative_ones(tmp_path):
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
def test_clients_that_prune_everything_by_themselves_measure_them(tmp_path, swept):
    jobs = plan(tmp_path, *swept)
    assert {job.baseline for job in jobs} == {len(jobs) - 1}


def test_jobs_run_inline_unless_told_otherwise(tmp_path):
    assert {j.config.federation.backend for j in plan(tmp_path, "seed=0,1")} == {"inline"}
    ray = plan(tmp_path, "seed=0,1", "federation.backend=ray")
    assert {job.config.federation.backend for job in ray} == {"ray"}


def test_folders_are_named_by_the_settings(tmp_path):
    jobs = plan(tmp_path, "sparsity=0.3,0.5", "seed=0,1")
    assert jobs[0].folder == tmp_path / "sparsity=0.3,seed=0"
    assert jobs[0].config.output_dir == str(jobs[0].folder)
    odd = plan(tmp_path, "data=/a b,/a-b", "data.text_key=text")
    assert len({job.folder for job in odd}) == 2
    assert all(" " not in job.folder.name and "/" not in job.folder.name for job in odd)


def test_a_wrong_job_is_named_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"The job .*sparsity=1.5.* cannot run"):
        plan(tmp_path, "sparsity=0.5,1.5")
    assert not list(tmp_path.iterdir())


def done(job: SweepJob, **changes: object) -> None:
    job.folder.mkdir(exist_ok=True)
    config = replace(job.config, **changes)  # type: ignore[arg-type]
    (job.folder / "config.yaml").write_text(to_yaml(config))
    (job.folder / "results.json").write_text(json.dumps({"seed": 1}))


def test_done_is_what_has_results_of_the_same_settings(tmp_path):
    job = plan(tmp_path, "sparsity=0.3,0.5")[0]
    assert finished(job) is None
    federation = replace(job.config.federation, backend="ray", client_cpus=2)
    done(job, federation=federation, output_dir="/elsewhere")
    assert finished(job) == {"seed": 1}
    (job.folder / "results.json").unlink()
    assert finished(job) is None


def test_missing_baselines_are_a_reason_to_run_again(tmp_path):
    first, second = plan(tmp_path, "strategy.group=layer,row")
    done(first, evaluation=second.config.evaluation)
    assert finished(first) is None
    done(second, evaluation=first.config.evaluation)
    assert finished(second) == {"seed": 1}


def test_results_of_other_settings_are_left_alone(tmp_path):
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


def test_a_job_that_was_cut_off_goes_on_only_as_it_was(tmp_path):
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
def test_a_job_that_ended_does_not_go_on(tmp_path, name):
    job = plan(tmp_path, "sparsity=0.3,0.5")[0]
    begun(job.folder, to_yaml(job.config), source_digest())
    (job.folder / name).write_text("{}")
    assert not cut_off(job)
