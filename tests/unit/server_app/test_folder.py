import json
from functools import cache

import numpy as np
import pytest
import torch

from fedprune.config import config_from_overrides, from_yaml
from fedprune.errors import ConfigError
from fedprune.methods.exchange import BlockResult
from fedprune.models.loading import LoadedModel, load_model
from fedprune.results.ledger import Entry, Ledger
from fedprune.wire.changes import Change, LinearUpdate, SparseWeight
from fedprune.wire.masks import BitMask
from server_app.run_folder import RunFolder, StateFiles, Tally
from strategies.state import RunState

CONFIG = config_from_overrides([])


UP, DOWN = "mlp.up_proj", "mlp.gate_proj"  # of one shape


@cache
def dense() -> LoadedModel:
    return load_model(CONFIG.model)


def block(seed: int, scaled: bool = False) -> dict[str, Change]:
    draw = np.random.default_rng(seed)
    mask = BitMask.from_bool(draw.random(dense().layout.shapes()[0][UP]) < 0.5)
    keeps = draw.integers(1, 6, mask.survivors, dtype=np.uint8) if scaled else None
    return {UP: LinearUpdate(mask, keeps, 5)}


@pytest.fixture
def tally(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.start(CONFIG)
    return Tally(folder, StateFiles(folder.state, Ledger()), dense(), 1)


def made(number: int, changes: dict[str, Change]) -> BlockResult:
    return BlockResult(number, changes, 5, 5.0)


def test_configuration_and_blocks_are_on_disk_and_come_back(tally):
    path = tally.folder.path
    assert from_yaml((path / "config.yaml").read_text()) == CONFIG
    tally.add(1, made(0, block(0)))
    tally.add(1, made(1, block(3, scaled=True)))
    assert tally.recall(1, 0) == {UP: block(0)[UP].mask}
    assert tally.recall(1, 1) == block(3, scaled=True)
    assert sorted(entry.name for entry in (path / "blocks" / "round-01").iterdir()) == [
        f"block-0000{number}.{ending}" for number in (0, 1) for ending in ("json", "safetensors")
    ]
    with pytest.raises(ConfigError, match="is damaged .block 2 of round 1"):
        tally.recall(1, 2)


def test_new_values_come_back_and_a_block_that_comes_again_takes_their_place(tally):
    mask = block(0)[UP].mask
    values = torch.linspace(-1, 1, mask.survivors).bfloat16()
    changes: dict[str, Change] = {UP: SparseWeight(mask, values), DOWN: mask}
    tally.add(1, made(0, changes))
    for number in range(1, 6):
        tally.add(1, made(number, {}))
    assert tally.recall(1, 0) == changes
    told = tally.linears()
    tally.add(1, made(0, {UP: SparseWeight(mask, -values), DOWN: mask}), refined=True)
    assert torch.equal(tally.recall(1, 0)[UP].values, -values)
    assert tally.linears() == told
    tally.add(1, made(0, block(1)))
    assert tally.recall(1, 0) == {UP: block(1)[UP].mask}
    tally.add(1, made(0, {}))
    assert tally.recall(1, 0) == {}


def test_a_round_s_blocks_stay_while_the_next_needs_them(tally):
    for number in (1, 2, 3):
        tally.add(number, made(0, block(number)))
    tally.save(RunState(round=3), {})
    with pytest.raises(ConfigError, match="is damaged .block 0 of round 1"):
        tally.recall(1, 0)
    for number in (2, 3):
        assert tally.recall(number, 0) == {UP: block(number)[UP].mask}


def test_two_processes_do_not_share_a_folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(CONFIG)
    with folder.locked(), pytest.raises(ConfigError, match="another process is at work"):
        with RunFolder(tmp_path).locked():
            pass
    with folder.locked():
        pass


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(ConfigError, match="`resume` must be the folder of a run"):
        RunFolder(tmp_path / "none").config_text()


def test_results_take_the_place_of_the_blocks(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(CONFIG)
    (tmp_path / "blocks" / "round-01").mkdir()
    folder.finish({"format": 1})
    assert json.loads((tmp_path / "results.json").read_text()) == {"format": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "results.json"]


def test_failure_keeps_the_blocks_and_the_ledger(tmp_path):
    folder, ledger = RunFolder(tmp_path), Ledger()
    folder.start(CONFIG)
    ledger.add(Entry(1, "prune", "north", 1, 2, 3.0, refused="late"))
    folder.fail("too few", ledger)
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["reason"] == "too few" and failure["ledger"]["refused"] == {"north": 1}
    assert (tmp_path / "blocks").is_dir()
    folder.reopen()
    assert not (tmp_path / "failure.json").exists()


def test_another_run_s_folder_is_refused(tmp_path):
    RunFolder(tmp_path).start(CONFIG)
    with pytest.raises(ConfigError, match="`output_dir`.*holds another run"):
        RunFolder(tmp_path).start(CONFIG)


def test_folder_that_cannot_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="`output_dir` must be writable"):
        RunFolder(tmp_path / "file" / "run").start(CONFIG)


def test_results_never_hold_what_json_has_not(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(CONFIG)
    with pytest.raises(ValueError):
        folder.finish({"perplexity": float("nan")})
    assert not (tmp_path / "results.json").exists()
