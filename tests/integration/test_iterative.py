"""Both schedules, all server groups, with and without scaling, against a slow plain oracle."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from transformers import AutoModelForCausalLM

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.models.loading import load_model
from fedprune.wire.changes import LinearUpdate, decode_update, encode_update
from fedprune.wire.masks import BitMask
from server_app.job import run_job
from tests.support.grid import LocalGrid
from tests.support.jobs import masks_of
from tests.support.published import CLIENTS, SMALL, linears, oracle, private_model

pytestmark = pytest.mark.usefixtures("three_blocks")

QUIET = ["evaluation.local_only=false", "evaluation.centralized=false"]
BASE = [*SMALL, "strategy.wait=1", "strategy.min_clients=1", "strategy.ties=index"]
BASE += ["strategy.majority_floor=false"]  # as published


def job(folder: Path, *overrides: str, grid=None) -> dict:
    options = " ".join([*BASE, *QUIET, *overrides])
    grid = grid or LocalGrid(app, CLIENTS)
    run_job(grid, {"overrides": options, "output-dir": str(folder)}, 11)
    assert not grid.kept()
    return json.loads((folder / "results.json").read_text())


def weights_of(folder: Path) -> dict[tuple[int, str], np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return {
        (block, name): module.weight.detach().numpy()
        for block, layer in enumerate(model.model.layers)
        for name, module in linears(layer).items()
    }


def check(folder: Path, expected) -> None:
    masks, weights = expected
    found, made = masks_of(folder), weights_of(folder / "model")
    assert set(found) == set(made) == set(masks)
    for key in masks:
        assert np.array_equal(found[key], masks[key]), key
        assert np.array_equal(made[key], weights[key]), key
        assert (~found[key]).sum() == found[key].size // 2


@pytest.mark.parametrize("scaling", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("group", ["layer", "row", "column"])
@pytest.mark.parametrize("schedule", ["one_shot", "iterative"])
def test_masks_and_weights_equal_the_published_algorithm(tmp_path, schedule, group, scaling):
    results = job(
        tmp_path / "run",
        f"schedule={schedule}",
        f"strategy.group={group}",
        f"strategy.scaling={str(scaling).lower()}",
    )
    check(tmp_path / "run", oracle(schedule, group, scaling))
    method = results["method"]
    assert (method["schedule"], method["strategy_group"]) == (schedule, group)
    assert method["scaling"] is scaling


def test_what_is_compared_differs():
    one_shot, plain, scaled = (
        oracle(schedule, "layer", scaling)[0]
        for schedule, scaling in (("one_shot", False), ("iterative", False), ("iterative", True))
    )
    last = max(plain)
    assert not np.array_equal(one_shot[last], plain[last])
    assert not np.array_equal(scaled[last], plain[last])


def test_one_round_trip_a_client_and_block_and_each_brings_the_block_before(tmp_path):
    grid = LocalGrid(app, CLIENTS)
    results = job(tmp_path / "run", "schedule=iterative", "strategy.scaling=true", grid=grid)
    blocks = max(block for block, _ in masks_of(tmp_path / "run")) + 1
    entries = [entry for entry in results["ledger"]["entries"] if entry["phase"] == "prune"]
    asked = [(entry["round"], entry["client"]) for entry in entries]
    names = [f"partition {partition}" for partition in range(CLIENTS)]
    assert sorted(asked) == [(r, name) for r in range(1, blocks + 1) for name in names]
    final = masks_of(tmp_path / "run")
    for message in grid.sent:
        if message.metadata.message_type == "train.prune":
            block = message.content["order"]["blocks"][0] - 1
            assert ("arrays" in message.content) == (block >= 0)
            if block >= 0:
                shapes = {n: mask.shape for (b, n), mask in final.items() if b == block}
                update = decode_update(message.content["arrays"]["update"].data, shapes)
                for name in shapes:
                    assert np.array_equal(update[name].mask.to_bool(), final[block, name])
                    assert update[name].total == CLIENTS
    first = [entry["bytes_down"] for entry in entries if entry["round"] == 1]
    later = [entry["bytes_down"] for entry in entries if entry["round"] > 1]
    numel = sum(mask.size for (block, _), mask in final.items() if block == 0)
    counts = [size - max(first) - numel / 8 for size in later]  # what is not masks
    assert numel / 2 / 16 < min(counts) and max(counts) < 2 * numel / 2 / 8  # half to two bits each


@pytest.mark.parametrize("scaling", [False, True], ids=["plain", "scaled"])
def test_a_client_that_drops_is_left_out_and_the_target_still_holds(tmp_path, scaling):
    def silent(partition, reply):
        arrays = reply.content.array_records.get("arrays", {})
        return None if partition == 1 and "block-00002" in arrays else reply

    grid = LocalGrid(app, CLIENTS, tamper=silent)
    results = job(
        tmp_path / "run",
        "schedule=iterative",
        f"strategy.scaling={str(scaling).lower()}",
        "strategy.timeout=0.5",
        grid=grid,
    )
    expected = oracle(
        "iterative", "layer", scaling, lambda block: range(CLIENTS) if block < 2 else (0, 2)
    )
    check(tmp_path / "run", expected)
    assert results["ledger"]["refused"] == {"partition 1": 1}
    assert set(results["agreement"]["votes_by_voters"]) == {"2", "3"}


class BadUpdates(LocalGrid):
    """Changes what partition 1 hears of block 0."""

    def __init__(self, change):
        super().__init__(app, CLIENTS)
        self._change = change

    def deliver(self, message):
        if message.metadata.dst_node_id == 101 and "arrays" in message.content:
            array = message.content["arrays"]["update"]
            data = self._change(array.data)
            broken = Array("uint8", (len(data),), array.stype, data)
            message.content["arrays"] = ArrayRecord({"update": broken})
        return super().deliver(message)


def sparser(data: bytes) -> bytes:
    """A well-formed update of which one mask has eight zeros too many."""
    shapes = load_model(config_from_overrides([]).model).layout.shapes()[0]
    updates = decode_update(data, shapes)
    name, old = next(iter(updates.items()))
    bits = old.mask.bits.copy()
    bits[np.argmax(bits)] = 0
    changed = LinearUpdate(BitMask(bits, old.shape), None, old.total)
    return encode_update({**updates, name: changed})


def scaled(data: bytes) -> bytes:
    """A well-formed update that scales although the configuration does not."""
    shapes = load_model(config_from_overrides([]).model).layout.shapes()[0]
    return encode_update(
        {
            name: LinearUpdate(old.mask, np.ones(old.mask.survivors, dtype=np.uint8), old.total)
            for name, old in decode_update(data, shapes).items()
        }
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "the update of block 0"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "CRC-32"),
        (lambda data: b"", "ends too early"),
        (sparser, "survivors, got"),
        (scaled, "not be scaled"),
    ],
    ids=["truncated", "flipped", "empty", "wrong zeros", "scaled"],
)
def test_a_client_refuses_a_bad_update_and_forgets_the_run(tmp_path, change, words):
    results = job(tmp_path / "run", "schedule=iterative", grid=BadUpdates(change))
    (refused,) = [entry for entry in results["ledger"]["entries"] if entry["refused"]]
    assert refused["client"] == "partition 1" and refused["round"] == 2
    assert "ReplyRefusedError" in refused["refused"] and words in refused["refused"]
    expected = oracle(
        "iterative", "layer", False, lambda block: range(CLIENTS) if block < 1 else (0, 2)
    )
    check(tmp_path / "run", expected)


def test_local_baselines_are_those_of_pruning_alone_in_both_schedules(tmp_path):
    found = {}
    for schedule in ("one_shot", "iterative"):
        folder = tmp_path / schedule
        results = job(folder, f"schedule={schedule}", "evaluation.local_only=true")
        found[schedule] = results["perplexity"]["stdlib"]["local_only"]["clients"]
    assert found["one_shot"] == found["iterative"]
    assert len(set(found["one_shot"].values())) == CLIENTS


def test_sparsity_of_each_block_and_other_choices(tmp_path):
    blocks = len(private_model().model.layers)
    wanted = np.linspace(0.4, 0.6, blocks).round(2)
    text = ",".join(f"{value:.2f}" for value in wanted)
    for schedule in ("one_shot", "iterative"):
        folder = tmp_path / schedule
        job(
            folder,
            f"schedule={schedule}",
            "allocation=per_block",
            f"allocation.blocks={text}",
            f"sparsity={wanted.mean():.4f}",
            "strategy.majority_floor=true",
            "strategy.ties=random",
            "strategy.client_weights=tokens",
        )
        for (block, _), mask in masks_of(folder).items():
            assert (~mask).sum() == round(mask.size * wanted[block], 6) // 1


def test_two_four_and_magnitude_run_iteratively(tmp_path):
    job(tmp_path / "nm", "schedule=iterative", "pruner.pattern='2:4'", "strategy.scaling=true")
    for mask in masks_of(tmp_path / "nm").values():
        assert np.all(mask.reshape(-1, 4).sum(axis=1) == 2)
    for schedule in ("one_shot", "iterative"):
        job(tmp_path / schedule, f"schedule={schedule}", "pruner=magnitude")
    first, second = masks_of(tmp_path / "one_shot"), masks_of(tmp_path / "iterative")
    assert all(np.array_equal(first[key], second[key]) for key in first)
