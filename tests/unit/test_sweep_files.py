"""Every table's grid lies beside its experiment, and every point of it is a job that runs."""

import functools
import itertools
from pathlib import Path

import pytest
import yaml

from fedprune.config import config_from_overrides
from fedprune.config.overrides import group_options

CONF = Path(__file__).resolve().parents[2] / "conf"
SWEEPS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((CONF / "sweep").glob("*.yaml"))
}
PAPER_SEQ_LEN = {
    "llama_7b": 2048,
    "llama_13b": 2048,
    "llama_30b": 2048,
    "llama2_7b": 4096,
    "llama2_13b": 4096,
    "llama3_8b": 8192,
}


def points(sweep):
    """Return the overrides of every run, seeds aside."""
    grid = [[{key: value} for value in values] for key, values in sweep["grid"].items()]
    axes = [*grid, sweep.get("linked", [{}])]
    for combination in itertools.product(*axes):
        merged = {key: value for part in combination for key, value in part.items()}
        yield [f"{key}={spelled(value)}" for key, value in merged.items()]


def spelled(value):
    return "null" if value is None else str(value).lower()


@functools.cache
def composed(name):
    """Return the configurations of all runs of a table, seeds aside."""
    return [
        config_from_overrides([f"experiment={SWEEPS[name]['experiment']}", *overrides])
        for overrides in points(SWEEPS[name])
    ]


def test_every_experiment_but_the_demo_is_a_table():
    assert set(SWEEPS) == set(group_options("experiment")) - {"demo"}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_point_composes_and_passes_the_checks(name):
    seen = set(composed(name))
    assert len(seen) == len(composed(name))
    assert all(config.strategy.min_clients == config.federation.num_clients for config in seen)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_has_its_parts_and_its_table_shows_every_swept_key(name):
    sweep = SWEEPS[name]
    assert set(sweep) - {"linked"} == {"experiment", "grid", "seeds", "table"}
    assert sweep["experiment"] == name
    assert len(set(sweep["seeds"])) >= 3
    shown = {*sweep["table"]["rows"], *sweep["table"]["columns"]}
    linked = {key for entry in sweep.get("linked", []) for key in entry}
    assert set(sweep["grid"]) <= shown <= {*sweep["grid"], *linked}
    assert not linked or shown & linked


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_file_starts_with_what_it_is_the_command_and_an_example(name):
    lines = (CONF / "sweep" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert [line.startswith("# ") for line in lines[:1]] == [True]
    assert lines[1] == f"#   fedprune sweep experiment={name}"
    assert lines[2].startswith(f"#   fedprune sweep experiment={name} ")


def test_the_main_table_has_every_pair_of_the_paper():
    for name in ("fedprllm_main", *(f"fedprllm_paper_{model}" for model in PAPER_SEQ_LEN)):
        assert len(list(points(SWEEPS[name]))) == 3 * 2 * 2 * 3
    assert len(list(points(SWEEPS["fedprllm_local_group"]))) == 9


@pytest.mark.parametrize("suffix", ["", "paper_llama_7b_"])
def test_client_and_sample_tables_are_those_of_the_paper(suffix):
    def sizes(table):
        name = f"fedprllm_{suffix}{table}"
        found = composed(name)
        return [(c.federation.num_clients, c.pruner.num_calibration_samples) for c in found]

    assert sizes("clients") == [(n, 128 // n) for n in (2, 4, 8, 16, 32, 64)]
    assert sizes("samples") == [(n, 2) for n in (2, 4, 8, 16, 32, 64)]


@pytest.mark.parametrize(("model", "seq_len"), PAPER_SEQ_LEN.items())
def test_the_paper_s_models_have_its_whole_setting(model, seq_len):
    config = config_from_overrides([f"experiment=fedprllm_paper_{model}"])
    assert config.model == config_from_overrides([f"model={model}"]).model
    assert (config.federation.num_clients, config.pruner.num_calibration_samples) == (64, 2)
    assert (config.pruner.name, config.pruner.group, config.sparsity) == ("wanda", "row", 0.5)
    assert (config.pruner.seq_len, config.evaluation.seq_len) == (seq_len, seq_len)
    assert (config.data.name, config.data.partition) == ("c4", "iid")
    assert (config.data.sampling, config.data.heldout_documents) == ("published", 1100)
    assert (config.evaluation.datasets, config.evaluation.max_windows) == ("wikitext2,ptb", 256)
    assert config.evaluation.local_only and config.evaluation.centralized


@pytest.mark.parametrize("name", [n for n in SWEEPS if "prllm" not in n and "paper" not in n])
def test_small_tables_of_unlike_clients_give_each_two_samples(name):
    for config in composed(name):
        assert config.pruner.num_calibration_samples == 2
        assert config.federation.num_clients == 8 or name == "fedspallm_clients"
        assert config.data.partition == "by_group" or name.startswith("beyond")
        assert config.evaluation.local_only and config.evaluation.centralized


def test_the_fedspallm_table_compares_averages_and_votes_of_one_pruner():
    found = {(c.strategy.name, c.strategy.average) for c in composed("fedspallm_main")}
    assert found == {("fedspallm", "l0"), ("fedspallm", "fedavg"), ("fedprllm", "l0")}
    assert {c.pruner.name for c in composed("fedspallm_main")} == {"sparsegpt"}
    fractions = {c.strategy.layer_fraction for c in composed("fedspallm_ablations")}
    assert fractions == {0.25, 0.5, 1.0}


@pytest.mark.parametrize("model", ["opt_125m", "opt_1_3b", "llama2_7b"])
def test_fedspallm_s_models_have_a_whole_setting(model):
    configs = composed(f"fedspallm_paper_{model}")
    assert {c.model for c in configs} == {config_from_overrides([f"model={model}"]).model}
    assert {c.federation.num_clients for c in configs} == {4, 8, 16}
    assert {c.sparsity for c in configs} == {0.5, 0.6, 0.7, 0.8}
    assert {(c.strategy.name, c.pruner.name) for c in configs} == {("fedspallm", "sparsegpt")}
    assert {(c.data.name, c.evaluation.datasets) for c in configs} == {("c4", "wikitext2")}
    assert {(c.pruner.seq_len, c.evaluation.seq_len) for c in configs} == {(2048, 2048)}


def test_the_table_beyond_the_papers_has_every_method_and_every_setting():
    configs = composed("beyond_main")
    assert len(configs) == 10 * 2 * 4 * 2
    methods = {
        (
            c.strategy.name,
            c.pruner.name,
            c.strategy.group,
            c.strategy.decode,
            c.schedule.name,
            c.schedule.prefix,
        )
        for c in configs
    }
    assert len(methods) == 10
    stats = {(m[4], m[5]) for m in methods if m[0] == "fedstats"}
    assert stats == {("iterative", "local"), ("one_shot", "dense"), ("one_shot", "local")}
    solvers = {m[1] for m in methods if m[0] == "fedhessian"}
    assert solvers == {"sparsegpt", "alps", "sparseswaps"}
    assert {c.allocation.name for c in configs} == {"uniform", "owl"}
    assert {c.data.partition for c in configs} == {"by_group", "iid"}
    nm = composed("beyond_nm")
    assert {(str(c.pruner.pattern), c.allocation.name) for c in nm} == {("2:4", "uniform")}
