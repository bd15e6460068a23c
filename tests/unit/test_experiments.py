"""Every experiment but the demo is a table, and every point of its grid is a job that runs."""

import functools
from pathlib import Path

import pytest

from fedprune.cli.sweep_plan import read_sweep, sweep_names
from fedprune.config import config_from_overrides
from fedprune.config.overrides import group_options

CONF = Path(__file__).resolve().parents[2] / "conf"
SWEEPS = sorted({*group_options("experiment")} - {"demo"})
sweep_of = functools.cache(lambda name: read_sweep([f"experiment={name}"]))
PAPER_SEQ_LEN = {
    "llama_7b": 2048,
    "llama_13b": 2048,
    "llama_30b": 2048,
    "llama2_7b": 4096,
    "llama2_13b": 4096,
    "llama3_8b": 8192,
}


@functools.cache
def composed(name):
    """Return the configurations of all runs of a table, seeds aside."""
    sweep = sweep_of(name)
    points = [point for point in sweep.points() if point["seed"] == sweep.grid["seed"][0]]
    return [
        config_from_overrides([*sweep.fixed, *(f"{key}={value}" for key, value in point.items())])
        for point in points
    ]


def test_every_experiment_but_the_demo_is_a_table():
    assert sweep_names() == SWEEPS


@pytest.mark.parametrize("name", SWEEPS)
def test_every_point_composes_and_passes_the_checks(name):
    seen = set(composed(name))
    assert len(seen) == len(composed(name))
    assert all(config.strategy.min_clients == config.federation.num_clients for config in seen)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_table_shows_every_swept_key_and_its_file_names_the_command(name):
    sweep = sweep_of(name)
    assert sweep == read_sweep([name]) and sweep.name == name
    assert sweep.fixed == (f"experiment={name}",)
    assert len(set(sweep.grid["seed"])) >= 3
    assert len({tuple(point.items()) for point in sweep.points()}) == len(sweep.points())
    shown, grid = {*sweep.axes.rows, *sweep.axes.columns}, {*sweep.grid} - {"seed"}
    assert grid <= shown <= {*sweep.keys}
    assert sweep.linked == ({},) or shown - grid
    lines = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert f"#   fedprune sweep experiment={name}" in lines


def test_the_main_table_has_every_pair_of_the_paper():
    for name in ("fedprllm_main", *(f"fedprllm_paper_{model}" for model in PAPER_SEQ_LEN)):
        assert len(composed(name)) == 3 * 2 * 2 * 3
    assert len(composed("fedprllm_local_group")) == 9


def test_published_tables_have_votes_as_published():
    for name in SWEEPS:
        for config in composed(name):
            assert not config.strategy.own_options().get("majority_floor"), name


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
        assert config.data.partition == "by_group" or name.startswith(("beyond", "frontier"))
        assert config.evaluation.local_only and config.evaluation.centralized


def test_the_fedspallm_table_compares_averages_and_votes_of_one_pruner():
    found = [(p["strategy"], p.get("strategy.average")) for p in sweep_of("fedspallm_main").linked]
    assert found == [("fedspallm", "l0"), ("fedspallm", "fedavg"), ("fedprllm", None)]
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
    methods = sweep_of("beyond_main").linked
    assert len({tuple(method.items()) for method in methods}) == 10
    stats = {(c.schedule.name, c.schedule.prefix) for c in configs if c.strategy.name == "fedstats"}
    assert stats == {("iterative", "local"), ("one_shot", "dense"), ("one_shot", "local")}
    solvers = {c.pruner.name for c in configs if c.strategy.name == "fedhessian"}
    assert solvers == {"sparsegpt", "alps", "sparseswaps"}
    assert {c.allocation.name for c in configs} == {"uniform", "owl"}
    assert {c.data.partition for c in configs} == {"by_group", "iid"}
    nm = composed("beyond_nm")
    assert {(str(c.pruner.pattern), c.allocation.name) for c in nm} == {("2:4", "uniform")}
