"""A mixture loses the experts that all clients' texts need least, and is a smaller mixture then."""

import json

import numpy as np
import pytest
import torch
import transformers as hf

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError, ModelError
from fedprune.methods.fedexperts.ranking import (
    SHARE_BITS,
    drop_fairly,
    drop_lowest,
    expert_scores,
    grouped,
    need_shares,
)
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.models.loading import load_model
from fedprune.pruning.blocks import BlockWalk
from fedprune.pruning.kinds import find_kind
from server_app.job import run_job
from tests.support.jobs import QUIET, Shuffled, job, samples_of
from tests.support.mixtures import mixture_folder, tiny_mixture_folder

EXPERTS, BLOCKS = 8, 3  # of `mixture_folder`
FEDEXPERTS = ("strategy=fedexperts", "strategy.timeout=60")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtral") / "model"
    return mixture_folder(folder)


def sums_of(model, samples):
    """Return the sums of each block, from one walk over some samples."""
    walk = BlockWalk(load_model(config_from_overrides([f"model={model}"]).model), samples)
    kinds = [find_kind("experts")]
    return [walk.observe((), kinds).block["experts"] for _ in walk.dense_blocks()]


def dropped(results):
    return [block["dropped"] for block in results["strategy"]["experts"]["blocks"]]


@pytest.mark.parametrize("clients", [1, 3, 16])
def test_what_goes_is_what_one_machine_with_all_texts_would_drop(tmp_path, mixtral, clients):
    options = (*FEDEXPERTS, f"model={mixtral}", "sparsity=0.25")
    results = job(tmp_path / "run", *options, grid=Shuffled(app, clients, seed=clients))
    pooled = sums_of(mixtral, sum(samples_of(clients, *options), []))
    expected = [drop_lowest(expert_scores(sums, "reap"), grouped(EXPERTS, 1), 2) for sums in pooled]
    assert dropped(results) == expected
    told = [block["tokens"] for block in results["strategy"]["experts"]["blocks"]]
    assert told == [sums["tokens"].tolist() for sums in pooled]


def test_the_model_is_smaller_and_loads_as_it_is(tmp_path, mixtral):
    options = (*FEDEXPERTS, f"model={mixtral}", "sparsity=0.5")
    results = job(tmp_path / "run", *options)
    folder = tmp_path / "run" / "model"
    small, told = hf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert small.config.num_local_experts == EXPERTS // 2
    told = results["smaller"]
    one_expert = 48 * 32 * 3 + 32  # gate, up and down, and a row of the router
    parameters = told["parameters"]
    assert parameters["before"] - parameters["after"] == BLOCKS * EXPERTS // 2 * one_expert
    assert results["sizes"]["dense"] == (folder / "model.safetensors").stat().st_size
    weights = results["sizes"]["base"] - results["sizes"]["dense"]
    assert weights == pytest.approx(4 * BLOCKS * EXPERTS // 2 * one_expert, abs=20_000)
    assert told["summary"] == "4 of 8 experts removed from each of 3 blocks"
    assert told["config"] == {"num_local_experts": EXPERTS // 2}
    assert np.isfinite(results["perplexity"]["stdlib"]["pruned"])
    card = (folder / "README.md").read_text()
    assert "4 of 8 experts removed from each of 3 blocks" in card and "zeros" not in card
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Experts removed" in report and "real zeros" not in report
    dense = hf.AutoModelForCausalLM.from_pretrained(mixtral)
    for block, gone in enumerate(dropped(results)):
        kept = [expert for expert in range(EXPERTS) if expert not in gone]
        for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
            whole = dense.get_parameter(f"model.layers.{block}.mlp.{name}")
            assert torch.equal(small.get_parameter(f"model.layers.{block}.mlp.{name}"), whole[kept])


@pytest.mark.parametrize(
    ("family", "top_k", "key"), [("llama4", 1, "num_local_experts"), ("dbrx", 2, "moe_num_experts")]
)
def test_experts_outside_of_the_librarys_contract_go_too(tmp_path, family, top_k, key):
    model = tiny_mixture_folder(family, tmp_path / family)
    options = (*FEDEXPERTS, f"model={model}", "sparsity=0.5", "evaluation.seq_len=64")
    results = job(tmp_path / "run", *options, grid=Shuffled(app, 3, seed=4))
    pooled = sums_of(model, sum(samples_of(3, *options), []))
    mixed = [sums for sums in pooled if sums]
    expected = [drop_lowest(expert_scores(sums, "reap"), grouped(4, 1), 2) for sums in mixed]
    assert mixed and dropped(results) == expected
    for sums in mixed:
        assert sums["tokens"].sum() == 3 * 2 * 48 * top_k
    small, told = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "run" / "model", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert f'"{key}": 2' in (tmp_path / "run" / "model" / "config.json").read_text()
    with torch.no_grad():
        assert bool(torch.isfinite(small(torch.arange(3, 40)[None]).logits).all())


def test_two_mixtures_in_a_block_are_refused_by_name(tmp_path):
    model = tiny_mixture_folder("jetmoe", tmp_path / "jetmoe")
    grid = Shuffled(app, 3)
    with pytest.raises(ModelError, match="JetMoe.* calls its experts.* Prune its weights instead"):
        job(tmp_path / "run", *FEDEXPERTS, f"model={model}", "sparsity=0.5", grid=grid)
    assert json.loads((tmp_path / "run" / "failure.json").read_text())["ledger"]["entries"] == []


def test_no_client_loses_more_than_it_must(tmp_path, mixtral):
    options = (*FEDEXPERTS, f"model={mixtral}", "sparsity=0.5", "strategy.pooling=worst_client")
    results = job(tmp_path / "run", *options, grid=Shuffled(app, 3, seed=2))
    own = [sums_of(mixtral, samples) for samples in samples_of(3, *options)]
    for block, told in enumerate(results["strategy"]["experts"]["blocks"]):
        needs = np.stack([need_shares(sums[block], "reap") for sums in own])
        found = drop_fairly(needs, grouped(EXPERTS, 1), 4)
        assert told["dropped"] == found.dropped
        assert told["worst_client_loss"] == pytest.approx(found.lost / 2**SHARE_BITS)
        assert told["worst_client_excess"] == pytest.approx(found.excess / 2**SHARE_BITS)


@pytest.mark.parametrize("pooling", ["clients", "scaled"])
def test_clients_can_count_the_same_whatever_their_tokens(tmp_path, mixtral, pooling):
    options = (*FEDEXPERTS, f"model={mixtral}", "sparsity=0.25", f"strategy.pooling={pooling}")
    results = job(tmp_path / "run", *options, grid=Shuffled(app, 3, seed=5))
    own = [sums_of(mixtral, samples) for samples in samples_of(3, *options)]
    for block, gone in enumerate(dropped(results)):
        # From the definition, in floating point: what a client scores, the same for each of them.
        rows = [sums[block]["saliency"] / np.maximum(sums[block]["tokens"], 1) for sums in own]
        if pooling == "scaled":
            rows = [row / row.sum() for row in rows]
        assert gone == sorted(np.argsort(np.sum(rows, axis=0))[:2].tolist())


def test_results_tell_of_all_clients_together_only(tmp_path, mixtral):
    options = (*FEDEXPERTS, f"model={mixtral}", "sparsity=0.25")
    results = job(tmp_path / "run", *options)
    own = [sums_of(mixtral, samples) for samples in samples_of(3, *options)]
    whole = (tmp_path / "run" / "results.json").read_text()
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert not any("partition" in p.name for p in files)
    for client in own:
        for sums in client:
            assert str(sums["tokens"].tolist()) not in whole
    assert results["ledger"]["of_dense"]["up_per_client"] < 8_000


def test_a_collection_serves_every_ranking_and_share(tmp_path, mixtral):
    model = f"model={mixtral}"
    job(tmp_path / "sums", "strategy=collect", "strategy.statistics=experts", model)
    statistics = StatisticsFolder.open(tmp_path / "sums")
    for number, options in enumerate(
        [("sparsity=0.25",), ("sparsity=0.5", "strategy.ranking=frequency")]
    ):
        solved, run = tmp_path / f"solved-{number}", tmp_path / f"run-{number}"
        overrides = " ".join([*QUIET, *FEDEXPERTS, model, *options])
        run_job(statistics, {"overrides": overrides, "output-dir": str(solved)}, 3)
        found = json.loads((solved / "results.json").read_text())
        assert dropped(found) == dropped(job(run, *FEDEXPERTS, model, *options))
        weights = [(place / "model" / "model.safetensors").read_bytes() for place in (solved, run)]
        assert weights[0] == weights[1]
    overrides = " ".join([*QUIET, *FEDEXPERTS, model, "strategy.pooling=worst_client"])
    with pytest.raises(ConfigError, match="weighs clients one by one"):
        run_job(statistics, {"overrides": overrides, "output-dir": str(tmp_path / "no")}, 4)


def test_weights_of_what_is_left_can_be_pruned(tmp_path, mixtral):
    job(tmp_path / "run", *FEDEXPERTS, f"model={mixtral}", "sparsity=0.5")
    small = tmp_path / "run" / "model"
    results = job(tmp_path / "again", "strategy=fedstats", f"model={small}", "sparsity=0.5")
    assert results["sparsity"]["overall"] == pytest.approx(0.5, abs=1e-3)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "again" / "model")
    assert again.config.num_local_experts == EXPERTS // 2
    zeros = (again.get_parameter("model.layers.0.mlp.experts.down_proj") == 0).float().mean()
    assert float(zeros) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("sparsity=0.1",), "drops none of the 8 experts of a block.*Set sparsity=0.125"),
        (("sparsity=0.9",), "drops 7 of 8 experts.*sent to 2: at most 6 can go. Set sparsity=0.75"),
        (("model=demo",), "LlamaForCausalLM has no experts that can be reached"),
    ],
)
def test_what_could_not_be_served_is_refused_before_anybody_is_asked(
    tmp_path, mixtral, options, message
):
    grid = Shuffled(app, 3)
    with pytest.raises((ConfigError, ModelError), match=message):
        job(tmp_path / "run", *FEDEXPERTS, f"model={mixtral}", *options, grid=grid)
    assert not (tmp_path / "run" / "model").exists()
    assert json.loads((tmp_path / "run" / "failure.json").read_text())["ledger"]["entries"] == []
