"""FedSpaLLM's rounds on the demo model: averages, expansion, layer sampling, segments, options."""

import math

import numpy as np
import pytest
import torch

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.models.loading import load_model
from fedprune.pruning.blocks import BlockWalk, prune_blocks
from fedprune.pruning.groups import block_specs
from fedprune.pruning.registry import make_pruner
from fedprune.records import read_bundle, read_order
from tests.support.grid import LocalGrid
from tests.support.jobs import (
    QUIET,
    Shuffled,
    described,
    job,
    masks_of,
    opt_folder,
    same_masks,
    samples_of,
    small_messages,
    weights_of,
    whole_model,
)

pytestmark = pytest.mark.usefixtures("three_blocks")

SPA = ("strategy=fedspallm",)
GPT = (*SPA, "pruner=sparsegpt")


def alone(samples, *overrides: str):
    """What one client makes of every block: (block, linear) -> mask and values."""
    config = config_from_overrides([*QUIET, *overrides])
    loaded = load_model(config.model)
    total = len(loaded.layout.blocks)
    walk = BlockWalk(loaded, samples)
    specs = block_specs(config, range(total), total)
    made = prune_blocks(walk, make_pruner(config.pruner), specs)
    return {(b, name): change for b, changes in made for name, change in changes.items()}


def equations(found: list, sparsity: float, expansion: bool = True, average: str = "l0"):
    """Equations 5 to 7 for one linear, in float64, one weight after another."""
    masks = np.stack([change.mask.to_bool().reshape(-1) for change in found])
    values = np.stack([change.dense().double().numpy().reshape(-1) for change in found])
    kept = masks.sum(0)
    divisor = np.maximum(kept, 1) if average == "l0" else len(found)
    mean = np.where(masks, values, 0).sum(0) / divisor
    zero = kept == 0
    if expansion:
        k = math.ceil(round(sparsity * kept.size, 6)) - zero.sum()
        left = sorted(np.flatnonzero(~zero), key=lambda j: (kept[j], abs(np.float32(mean[j])), j))
        zero = zero.copy()
        zero[left[:k]] = True
    return np.where(zero, 0, mean), ~zero


@pytest.mark.parametrize(
    ("extra", "expansion", "average"),
    [
        ((), True, "l0"),
        (("strategy.expansion=false",), False, "l0"),
        (("strategy.average=fedavg",), True, "fedavg"),
    ],
)
def test_weights_equal_the_equations(tmp_path, extra, expansion, average):
    options = (*GPT, *extra, "sparsity=0.55")
    job(tmp_path / "run", *options, grid=Shuffled(app, 3))
    clients = [alone(samples, *options) for samples in samples_of(3)]
    masks, weights = masks_of(tmp_path / "run"), weights_of(tmp_path / "run")
    for key, mask in masks.items():
        mean, kept = equations([c[key] for c in clients], 0.55, expansion, average)
        assert np.array_equal(mask.reshape(-1), kept)
        assert np.allclose(weights[key].reshape(-1).numpy(), mean, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sparsity", [0.5, 0.6])
@pytest.mark.parametrize("pruner", ["wanda", "magnitude"])
def test_with_a_mask_only_pruner_it_is_fedprllm_s_layer_vote(tmp_path, pruner, sparsity):
    options = (f"pruner={pruner}", f"sparsity={sparsity}")
    job(tmp_path / "spa", *SPA, *options, "strategy.rounding=floor", clients=4)
    job(tmp_path / "vote", *options, "strategy.majority_floor=false", clients=4)
    assert same_masks(masks_of(tmp_path / "spa"), masks_of(tmp_path / "vote"))
    first, second = weights_of(tmp_path / "spa"), weights_of(tmp_path / "vote")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_only_prunable_weights_change_and_biases_stay(tmp_path):
    model = f"model={opt_folder(tmp_path / 'opt', torch.bfloat16)}"
    results = job(tmp_path / "run", *GPT, model, "data.partition=iid")
    made = whole_model(f"model={tmp_path / 'run' / 'model'}").model
    dense = whole_model(model).model
    pruned = {name + ".weight" for name in results["sparsity"]["linears"]}
    for name, tensor in dense.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(made.state_dict()[name], tensor) != (name in pruned)


def test_two_four_keeps_two_of_four(tmp_path):
    job(tmp_path / "run", *GPT, "pruner.pattern='2:4'")
    for mask in masks_of(tmp_path / "run").values():
        assert np.all(mask.reshape(-1, 4).sum(axis=1) == 2)


def test_half_the_layers_cost_half_the_bytes_and_all_are_covered(tmp_path, six_blocks):
    up = {}
    for fraction in (1.0, 0.5):
        folder = tmp_path / str(fraction)
        options = (*GPT, six_blocks, f"strategy.layer_fraction={fraction}")
        results = job(folder, *options, clients=4)
        prune = [e for e in results["ledger"]["entries"] if e["phase"] == "prune"]
        up[fraction] = sum(entry["bytes_up"] for entry in prune)
        (drawn,) = results["strategy"]["layer_sampling"]
        assert drawn["share"] == fraction and drawn["least_reporters"] == 4 * fraction
        assert results["sparsity"]["overall"] == pytest.approx(0.5, abs=1e-4)
    described(results)
    assert up[0.5] / up[1.0] == pytest.approx(0.5, abs=0.02)


def test_unsampled_blocks_stay_dense_on_the_client(tmp_path, six_blocks):
    """With one reporter a block, the block is what that client makes with dense blocks between."""
    options = (*GPT, six_blocks, "strategy.layer_fraction=0.5")
    grid = LocalGrid(app, 2)
    results = job(tmp_path / "run", *options, grid=grid, clients=2)
    drawn = results["strategy"]["layer_sampling"][0]["clients"]
    assert sorted(sum(drawn.values(), [])) == list(range(6))
    config = config_from_overrides([*QUIET, *options])
    loaded, weights = load_model(config.model), weights_of(tmp_path / "run")
    specs = block_specs(config, range(6), 6)
    for partition, samples in enumerate(samples_of(2)):
        walk = BlockWalk(loaded, samples)
        for block in range(6):
            changes = {}
            if block in drawn[f"partition {partition}"]:
                ((_, changes),) = prune_blocks(
                    BlockWalk(loaded, samples, hidden=walk.hidden, start=block),
                    make_pruner(config.pruner),
                    {block: specs[block]},
                )
                for name, change in changes.items():
                    assert torch.equal(weights[block, name], change.dense())
            if block < 5:
                walk.advance(changes)


def test_operators_and_memory_limit_what_a_node_prunes(tmp_path, six_blocks):
    nodes = {0: {"partition-id": 0, "num-partitions": 3, "layer-fraction": 0.34}}
    grid = LocalGrid(app, 3, node_configs=nodes)
    options = (*GPT, six_blocks, "strategy.layer_resources=measured")
    results = job(tmp_path / "run", *options, grid=grid)
    drawn = results["strategy"]["layer_sampling"][0]
    assert len(drawn["clients"]["partition 0"]) == 2
    assert drawn["least_reporters"] >= 1


def test_a_block_that_cannot_be_covered_is_an_error_before_the_run(tmp_path):
    grid = LocalGrid(app, 2)
    with pytest.raises(ConfigError, match="strategy.layer_fraction"):
        job(tmp_path / "run", *GPT, "strategy.layer_fraction=0.2", grid=grid)
    assert {m.metadata.message_type for m in grid.sent} == {"query.handshake"}
    assert (tmp_path / "run" / "failure.json").exists()


def test_rounds_start_from_what_the_round_before_made(tmp_path):
    grid = LocalGrid(app, 2)
    options = ("strategy.rounds=2", "strategy.ramp=linear", "strategy.layer_fraction=0.5")
    results = job(tmp_path / "run", *GPT, *options, grid=grid, clients=2)
    assert results["sparsity"]["overall"] == pytest.approx(0.5, abs=1e-4)
    assert len(results["strategy"]["layer_sampling"]) == 2
    orders = [
        (read_order(m), read_bundle(m))
        for m in grid.sent
        if m.metadata.message_type == "train.prune"
    ]
    first, second = orders[:2], orders[2:]
    assert all(not bundle for _, bundle in first)
    for order, bundle in second:
        assert set(bundle) == {f"start-{block:05d}" for block in order.blocks}
    assert [order.last for order, _ in orders] == [False, False, True, True]


def test_what_a_round_pruned_stays_pruned_with_masks_of_rows_too(tmp_path):
    """Rows of a client may keep entries that the layer's mask has emptied: they stay zero."""
    job(tmp_path / "one", *SPA, "sparsity=0.5", clients=2)
    job(tmp_path / "two", *SPA, "sparsity=0.5", "strategy.rounds=2", clients=2)
    first, second = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key, mask in masks_of(tmp_path / "one").items():
        assert not second[key][torch.from_numpy(~mask)].any()
        assert torch.equal(first[key], first[key] * torch.from_numpy(mask))


def test_long_messages_travel_in_segments_and_change_nothing(tmp_path, monkeypatch):
    options = (*GPT, "schedule=iterative", "evaluation.local_only=true")
    whole = job(tmp_path / "whole", *options, clients=2)
    small_messages(monkeypatch, 1 << 16)
    grid = LocalGrid(app, 2)
    cut = job(tmp_path / "cut", *options, grid=grid)
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(first[key], second[key]) for key in first)
    kinds = {m.metadata.message_type for m in grid.sent}
    assert {"query.fetch", "query.deliver"} <= kinds
    phases = {e["phase"] for e in cut["ledger"]["entries"]}
    assert "deliver" in phases and not cut["ledger"]["refused"]
    # The same payload, and a header for every segment.
    assert 1 < cut["ledger"]["bytes_up"] / whole["ledger"]["bytes_up"] < 1.1


def test_a_lost_segment_leaves_its_client_out(tmp_path, monkeypatch):
    small_messages(monkeypatch, 1 << 16)

    def lossy(partition, reply):
        arrays = reply.content.array_records.get("arrays", {})
        late = "segment" in arrays and "metrics" not in reply.content
        return None if partition == 1 and late else reply

    grid = LocalGrid(app, 2, tamper=lossy)
    results = job(tmp_path / "run", *GPT, "strategy.timeout=0.5", grid=grid)
    assert results["ledger"]["refused"] == {"partition 1": 1}
    assert not grid.kept()
    own = samples_of(2)[0]
    weights = weights_of(tmp_path / "run")
    for key, change in alone(own, *GPT).items():
        assert torch.equal(weights[key], change.dense())


def test_a_reply_with_wrong_values_is_refused_whole(tmp_path):
    def nan(partition, reply):
        arrays = reply.content.array_records.get("arrays")
        if partition == 1 and arrays is not None:
            key = next(iter(arrays))
            data = bytearray(arrays[key].data)
            data[-4:] = np.float32("nan").tobytes()
            arrays[key] = type(arrays[key])(
                "uint8", arrays[key].shape, arrays[key].stype, bytes(data)
            )
        return reply

    results = job(tmp_path / "run", *GPT, grid=LocalGrid(app, 3, tamper=nan))
    assert results["ledger"]["refused"] == {"partition 1": 1}
