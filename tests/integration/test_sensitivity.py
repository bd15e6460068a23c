"""Allocation by what the loss says: every method follows it, and so does any number of clients."""

import numpy as np
import pytest

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.methods.collect.method import prune_from
from fedprune.methods.registry import exchanges
from fedprune.methods.statistics_folder import StatisticsFolder
from fedprune.models.loading import load_model
from fedprune.pruning.groups import check_allocation
from tests.support.jobs import Shuffled, described, job, masks_of, same_masks
from tests.support.mixtures import mixture_folder

SENSITIVE = ("allocation=sensitivity", "sparsity=0.7", "allocation.texts=2")
ITERATIVE = "schedule=iterative"
pytestmark = pytest.mark.usefixtures("three_blocks")
STRATEGIES = (
    ("strategy=fedprllm",),
    ("strategy=fedprllm", "strategy.decode=true"),
    ("strategy=fedstats", ITERATIVE),
    ("strategy=fedhessian", "pruner=alps", ITERATIVE),
    ("strategy=fedspallm", "pruner=sparsegpt"),
)


@pytest.mark.parametrize(
    "options", STRATEGIES, ids=["votes", "decoded", "stats", "hessian", "weights"]
)
def test_every_method_prunes_linear_by_linear(tmp_path, options):
    results = job(tmp_path / "run", *options, *SENSITIVE, grid=Shuffled(app, 3))
    found = results["strategy"]["allocation"]["sparsities"]
    assert results["sparsity"]["overall"] == pytest.approx(0.7, abs=1e-3)
    assert len({share for block in found for share in block.values()}) > 12
    for name, share in results["sparsity"]["linears"].items():
        block, linear = name.removeprefix("model.layers.").split(".", 1)
        # One linear of all is between two steps.
        assert share == pytest.approx(found[int(block)][linear], abs=1 / 128 + 1e-3)
    described(results)
    surveys = [e for e in results["ledger"]["entries"] if e["phase"] == "survey"]
    assert len(surveys) == 3 and all(0 < e["bytes_up"] < 60_000 for e in surveys)


def test_one_client_three_and_sixteen_come_to_the_same_to_the_bit(tmp_path):
    found = []
    for clients in (1, 3, 16):
        results = job(
            tmp_path / str(clients),
            *("strategy=fedstats", ITERATIVE, *SENSITIVE, "data.partition=iid"),
            *("data.sampling=published", f"pruner.num_calibration_samples={48 // clients}"),
            clients=clients,
        )
        found.append(results["strategy"]["allocation"])
    assert found[0] == found[1] == found[2]
    masks = [masks_of(tmp_path / str(clients)) for clients in (1, 3, 16)]
    assert same_masks(masks[0], masks[1]) and same_masks(masks[0], masks[2])


def test_experts_of_a_mixture_share_theirs(tmp_path):
    model = f"model={mixture_folder(tmp_path / 'moe')}"
    results = job(tmp_path / "run", "strategy=fedstats", *SENSITIVE, model)
    found = results["strategy"]["allocation"]["sparsities"]
    assert any("*" in name for name in found[0])
    assert results["sparsity"]["overall"] == pytest.approx(0.7, abs=0.01)


def test_statistics_collected_once_are_allocated_the_same(tmp_path):
    job(tmp_path / "kept", "strategy=collect")
    config = config_from_overrides(
        ["strategy=fedstats", *SENSITIVE, "schedule.prefix=dense", "pruner.seq_len=48"]
    )
    loaded = load_model(config.model)
    folder = StatisticsFolder.open(tmp_path / "kept" / "statistics")
    solution = prune_from(config, loaded, folder)
    run = job(tmp_path / "run", "strategy=fedstats", *SENSITIVE, "schedule.prefix=dense")
    assert solution.figures["allocation"] == run["strategy"]["allocation"]
    masks = masks_of(tmp_path / "run")
    for block in range(len(loaded.layout.blocks)):
        for name, change in solution.changes[block].items():
            assert np.array_equal(change.to_bool(), masks[block, name])


def test_a_list_of_linears_is_followed_and_another_models_refused(tmp_path):
    names = "q_proj k_proj v_proj o_proj".split()
    listed = ";".join(f"self_attn.{name}=" + ",".join(["0.6"] * 3) for name in names)
    options = ("allocation=per_linear", f"allocation.linears='{listed}'", "sparsity=0.6")
    results = job(tmp_path / "run", "strategy=fedstats", *options)
    assert results["sparsity"]["overall"] == pytest.approx(0.6, abs=1 / 128)


def test_auto_is_what_it_says():
    for overrides, expected in (
        (["allocation=auto", "sparsity=0.7"], ["prune", "survey"]),
        (["allocation=auto", "pruner=magnitude"], ["prune"]),
        (["allocation=auto", "pruner.pattern='2:4'"], ["prune"]),
        (["allocation=auto", "strategy=depth"], ["prune", "survey"]),
    ):
        config = config_from_overrides(overrides)
        assert list(exchanges(config)) == expected
    check_allocation(config_from_overrides(["allocation=auto", "pruner=magnitude"]), [{}])


def test_outputs_weigh_by_what_the_loss_says_of_them(tmp_path):
    options = ("strategy=fedhessian", "pruner=alps", ITERATIVE, "allocation.texts=2")
    plain = job(tmp_path / "plain", *options)
    results = job(tmp_path / "run", *options, "pruner.two_sided=true")
    assert results["sparsity"]["overall"] == plain["sparsity"]["overall"]
    first, second = masks_of(tmp_path / "plain"), masks_of(tmp_path / "run")
    differing = [np.mean(first[key] != second[key]) for key in first]
    assert all(0 < share < 0.5 for share in differing)
