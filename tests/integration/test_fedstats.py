"""Summed statistics give the masks of pruning all texts in one place, bit for bit."""

import numpy as np
import pytest
import torch

from client_app.app import app
from fedprune.records import read_bundle
from fedprune.wire.sums import is_pooled
from tests.support.grid import LocalGrid, garbled
from tests.support.jobs import (
    Shuffled,
    job,
    masks_of,
    opt_folder,
    same_masks,
    samples_of,
    weights_of,
    whole_model,
)
from tests.support.mixtures import mixture_folder
from tests.support.slow_wanda import central

pytestmark = pytest.mark.usefixtures("three_blocks")

STATS = ("strategy=fedstats", "strategy.timeout=60")


def pooled(clients: int, *overrides: str) -> list[torch.Tensor]:
    return [sample for samples in samples_of(clients, *overrides) for sample in samples]


@pytest.mark.parametrize(
    ("clients", "partition"), [(1, "by_group"), (3, "by_group"), (3, "iid"), (16, "dirichlet")]
)
def test_iterative_masks_equal_centralised_pruning_bit_for_bit(tmp_path, clients, partition):
    options = ("pruner.num_calibration_samples=1", f"data.partition={partition}")
    expected = central(pooled(clients, *options))
    results = job(
        tmp_path / "run",
        *STATS,
        *options,
        "schedule=iterative",
        grid=Shuffled(app, clients, seed=clients),
    )
    assert same_masks(masks_of(tmp_path / "run"), expected)
    assert results["agreement"] is None and results["method"]["strategy"] == "fedstats"


@pytest.mark.parametrize("clients", [1, 3, 16])
def test_another_architecture_with_biases_and_other_sparsities(tmp_path, clients):
    model = f"model={opt_folder(tmp_path / 'opt')}"
    options = ("pruner.num_calibration_samples=1", "data.partition=iid", model)
    expected = central(pooled(clients, *options), model, sparsity=0.7)
    grid = Shuffled(app, clients, seed=1)
    job(tmp_path / "run", *STATS, *options, "schedule=iterative", "sparsity=0.7", grid=grid)
    assert same_masks(masks_of(tmp_path / "run"), expected)


def test_one_shot_on_the_dense_model_equals_central_pruning_on_dense_inputs(tmp_path):
    expected = central(pooled(3), prune_on=False)
    for name, extra in (("whole", ()), ("cut", ("schedule.blocks_per_message=2",))):
        job(tmp_path / name, *STATS, "schedule.prefix=dense", *extra)
        assert same_masks(masks_of(tmp_path / name), expected)


def test_one_shot_on_locally_pruned_blocks_lies_in_between(tmp_path):
    exact = central(pooled(3))
    job(tmp_path / "local", *STATS)
    job(tmp_path / "dense", *STATS, "schedule.prefix=dense")
    differing = {
        name: sum((masks_of(tmp_path / name)[key] != exact[key]).sum() for key in exact)
        for name in ("local", "dense")
    }
    assert 0 < differing["local"] < differing["dense"]


def test_one_client_alone_gets_its_own_masks_whatever_the_pooling(tmp_path):
    found = {}
    for pooling in ("tokens", "clients", "scaled"):
        job(tmp_path / pooling, *STATS, f"strategy.pooling={pooling}", clients=1)
        found[pooling] = masks_of(tmp_path / pooling)
    job(tmp_path / "votes", clients=1)
    votes = masks_of(tmp_path / "votes")
    # Scaling rounds, so that a few ties in float32 may fall the other way.
    for pooling, allowed in (("tokens", 0), ("clients", 1e-3), ("scaled", 1e-3)):
        assert np.mean([np.mean(found[pooling][k] != votes[k]) for k in votes]) <= allowed


@pytest.mark.parametrize("pruner", ["wanda", "ria"])
def test_the_downlink_is_what_was_asked_for_and_gives_the_same_masks(tmp_path, pruner):
    sent = {}
    for downlink in ("auto", "sums", "masks"):
        grid = LocalGrid(app, 2)
        folder = tmp_path / downlink
        options = (*STATS, "schedule=iterative", f"pruner={pruner}")
        job(folder, *options, f"strategy.downlink={downlink}", grid=grid)
        prunes = [m for m in grid.sent if m.metadata.message_type == "train.prune"]
        updates = [read_bundle(m).get("update") for m in prunes]
        sent[downlink] = [u for u in updates if u is not None]
    assert all(map(is_pooled, sent["sums"])) and not any(map(is_pooled, sent["masks"]))
    assert sent["auto"] == sent["sums"]  # here the sums are shorter
    first = masks_of(tmp_path / "auto")
    assert all(same_masks(first, masks_of(tmp_path / name)) for name in ("sums", "masks"))


def test_a_client_that_lies_about_shared_inputs_or_sends_garbage_is_left_out(tmp_path):
    grid = LocalGrid(app, 3, tamper=garbled("block-00002"))
    results = job(tmp_path / "run", *STATS, "schedule.prefix=dense", grid=grid)
    assert results["ledger"]["refused"] == {"partition 1": 1}
    lists = samples_of(3)
    assert same_masks(masks_of(tmp_path / "run"), central([*lists[0], *lists[2]], prune_on=False))


def test_the_centralised_baseline_uses_the_samples_that_operators_allow(tmp_path):
    nodes = {1: {"partition-id": 1, "num-partitions": 3, "max-samples": 1}}
    grid = LocalGrid(app, 3, node_configs=nodes)
    options = ("schedule=iterative", "evaluation.centralized=true", "data.partition=iid")
    results = job(tmp_path / "run", *STATS, *options, grid=grid)
    assert [client["samples"] for client in results["clients"]] == [2, 1, 2]
    (found,) = results["perplexity"].values()
    assert found["pruned"] == found["centralized"]


RECONSTRUCTED = ("pruner=alps", "schedule=iterative", "sparsity=0.6", "evaluation.local_only=false")


@pytest.mark.usefixtures("short_text")
@pytest.mark.parametrize(
    "more",
    [pytest.param((), marks=pytest.mark.slow), ("pruner.two_sided=true", "allocation.texts=2")],
)
def test_a_reconstruction_on_sums_is_the_same_however_texts_are_spread(tmp_path, short_model, more):
    more = (*more, short_model, "data.partition=iid", "data.sampling=published")
    for clients in (1, 3, 6):
        job(
            tmp_path / str(clients),
            *(*STATS, *RECONSTRUCTED, *more),
            f"pruner.num_calibration_samples={12 // clients}",
            clients=clients,
        )
    first = weights_of(tmp_path / "1")
    for clients in ("3", "6"):
        other = weights_of(tmp_path / clients)
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_a_reconstruction_on_sums_errs_less_than_wanda_on_the_clients_own_texts(tmp_path):
    job(tmp_path / "wanda", *STATS, "schedule.prefix=dense", "sparsity=0.6")
    job(tmp_path / "alps", *STATS, *RECONSTRUCTED[:1], "schedule.prefix=dense", "sparsity=0.6")
    loaded = whole_model()
    dense = {
        (block, name): module.weight.detach().double()
        for block, layer in enumerate(loaded.layout.blocks)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    moments = {}

    def hook(key):
        def add(module, args, output):
            flat = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            moments[key] = moments.get(key, 0) + flat.T @ flat

        return add

    for block, layer in enumerate(loaded.layout.blocks):
        for name, module in layer.named_modules():
            if (block, name) in dense:
                module.register_forward_hook(hook((block, name)))
    with torch.no_grad():
        for sample in pooled(3):
            loaded.model(input_ids=sample[None], use_cache=False)

    def errors(folder):
        gaps = {key: dense[key] - weight.double() for key, weight in weights_of(folder).items()}
        return [float(((gap @ moments[key]) * gap).sum()) for key, gap in gaps.items()]

    pairs = list(zip(errors(tmp_path / "alps"), errors(tmp_path / "wanda"), strict=True))
    # Not in every one: it minimises the error on public text's correlations, not on theirs.
    ratios = [ours / wandas for ours, wandas in pairs]
    assert np.mean(np.array(ratios) < 1) > 0.7 and np.median(ratios) < 0.9, ratios


def test_a_client_sends_the_same_sums_whatever_the_solver(tmp_path):
    sent = []
    for pruner in ("wanda", "sparsegpt"):
        options = (*STATS, f"pruner={pruner}", "schedule.prefix=dense")
        results = job(tmp_path / pruner, *options)
        up = [e["bytes_up"] for e in results["ledger"]["entries"] if e["phase"] == "prune"]
        sent.append(sorted(up))
        assert all(mask.sum() == mask.size // 2 for mask in masks_of(tmp_path / pruner).values())
    assert sent[0] == sent[1]


@pytest.mark.usefixtures("short_text")
def test_experts_that_public_text_does_not_reach_are_pruned_on_their_sums(tmp_path):
    model = f"model={mixture_folder(tmp_path / 'moe')}"
    results = job(tmp_path / "run", *STATS, *RECONSTRUCTED, model)
    assert results["sparsity"]["overall"] == pytest.approx(0.6, abs=0.01)
