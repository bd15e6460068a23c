import json

import numpy as np
import pytest
import torch

from fedprune.config import config_from_overrides, from_yaml
from fedprune.errors import ConfigError
from fedprune.reporting.ledger import Entry, Ledger
from fedprune.wire.bitmask import BitMask
from fedprune.wire.change import Change, LinearUpdate
from fedprune.wire.sparse import SparseWeight
from server_app.folder import RunFolder

CONFIG = config_from_overrides([])


def block(seed: int, scaled: bool = False) -> dict[str, LinearUpdate]:
    draw = np.random.default_rng(seed)
    mask = BitMask.from_bool(draw.random((4, 6)) < 0.5)
    keeps = draw.integers(1, 6, mask.survivors, dtype=np.uint8) if scaled else None
    return {"mlp.up": LinearUpdate(mask, keeps, 5)}


def test_configuration_and_blocks_are_on_disk_and_come_back(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.start(CONFIG)
    assert from_yaml((folder.path / "config.yaml").read_text()) == CONFIG
    for number in range(3):
        folder.save_block("model.layers", number, block(number))
    folder.save_block("model.layers", 3, block(3, scaled=True))
    found = folder.read_changes(4)
    for number in range(3):
        assert found[number] == {"mlp.up": block(number)["mlp.up"].mask}
    scaled = block(3, scaled=True)["mlp.up"]
    assert found[3]["mlp.up"].mask == scaled.mask
    assert np.array_equal(found[3]["mlp.up"].keeps, scaled.keeps)


def test_new_values_come_back_and_a_later_round_takes_their_place(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(CONFIG)
    mask = block(0)["mlp.up"].mask
    values = torch.linspace(-1, 1, mask.survivors).bfloat16()
    changes: dict[str, Change] = {"mlp.up": SparseWeight(mask, values), "mlp.down": mask}
    folder.save_block("h", 0, changes)
    assert folder.read_changes(1) == {0: changes}
    folder.save_block("h", 0, {"mlp.up": SparseWeight(mask, -values), "mlp.down": mask})
    assert torch.equal(folder.read_changes(1)[0]["mlp.up"].values, -values)
    folder.save_block("h", 0, block(1))
    assert folder.read_changes(1) == {0: {"mlp.up": block(1)["mlp.up"].mask}}


def test_results_take_the_place_of_the_blocks(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(CONFIG)
    folder.save_block("h", 0, block(0))
    folder.finish({"format": 1})
    assert json.loads((tmp_path / "results.json").read_text()) == {"format": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "results.json"]


def test_failure_keeps_the_blocks_and_the_ledger(tmp_path):
    folder, ledger = RunFolder(tmp_path), Ledger()
    folder.start(CONFIG)
    folder.save_block("h", 0, block(0))
    ledger.add(Entry(1, "prune", "north", 1, 2, 3.0, refused="late"))
    folder.fail("too few", ledger)
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["reason"] == "too few" and failure["ledger"]["refused"] == {"north": 1}
    assert folder.read_changes(1) == {0: {"mlp.up": block(0)["mlp.up"].mask}}


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
