import json

import numpy as np
import pytest
import torch

from fedprune.config import config_from_overrides, from_yaml
from fedprune.errors import ConfigError
from fedprune.results.ledger import Entry, Ledger
from fedprune.wire.changes import Change, LinearUpdate, SparseWeight
from fedprune.wire.masks import BitMask
from server_app.run_folder import RunFolder

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
        folder.save_block(1, "model.layers", number, block(number))
    folder.save_block(1, "model.layers", 3, block(3, scaled=True))
    found = [folder.read_block(1, number) for number in range(4)]
    for number in range(3):
        assert found[number] == {"mlp.up": block(number)["mlp.up"].mask}
    scaled = block(3, scaled=True)["mlp.up"]
    assert found[3]["mlp.up"].mask == scaled.mask
    assert np.array_equal(found[3]["mlp.up"].keeps, scaled.keeps)
    assert folder.read_block(1, 4) == {}


def test_new_values_come_back_and_a_block_that_comes_again_takes_their_place(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(CONFIG)
    mask = block(0)["mlp.up"].mask
    values = torch.linspace(-1, 1, mask.survivors).bfloat16()
    changes: dict[str, Change] = {"mlp.up": SparseWeight(mask, values), "mlp.down": mask}
    folder.save_block(1, "h", 0, changes)
    assert folder.read_block(1, 0) == changes
    folder.save_block(1, "h", 0, {"mlp.up": SparseWeight(mask, -values), "mlp.down": mask})
    assert torch.equal(folder.read_block(1, 0)["mlp.up"].values, -values)
    folder.save_block(1, "h", 0, block(1))
    assert folder.read_block(1, 0) == {"mlp.up": block(1)["mlp.up"].mask}
    folder.save_block(1, "h", 0, {})
    assert folder.read_block(1, 0) == {}


def test_a_round_s_blocks_stay_while_the_next_needs_them(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(CONFIG)
    for number in (1, 2, 3):
        folder.save_block(number, "h", 0, block(number))
        folder.save_figures(number, 0, {"number": number})
        folder.settle_blocks(number)
    folder.forget_rounds(2)
    assert folder.read_block(1, 0) == {}
    for number in (2, 3):
        assert folder.read_block(number, 0) == {"mlp.up": block(number)["mlp.up"].mask}
        assert folder.read_figures(number, 0) == {"number": number}


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
    folder.save_block(1, "h", 0, block(0))
    folder.finish({"format": 1})
    assert json.loads((tmp_path / "results.json").read_text()) == {"format": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "results.json"]


def test_failure_keeps_the_blocks_and_the_ledger(tmp_path):
    folder, ledger = RunFolder(tmp_path), Ledger()
    folder.start(CONFIG)
    folder.save_block(1, "h", 0, block(0))
    ledger.add(Entry(1, "prune", "north", 1, 2, 3.0, refused="late"))
    folder.fail("too few", ledger)
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["reason"] == "too few" and failure["ledger"]["refused"] == {"north": 1}
    assert folder.read_block(1, 0) == {"mlp.up": block(0)["mlp.up"].mask}
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
