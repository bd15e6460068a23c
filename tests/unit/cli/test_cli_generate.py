"""`fedprune generate`: what it says, and what it refuses."""

import json
from pathlib import Path

import pytest

from fedprune.cli import main
from fedprune.models.embedded import demo_model_path


def test_a_slice_of_a_folder_s_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shape = str(demo_model_path())
    assert main(["generate", shape, str(folder), "--blocks", "2", "--dtype", "float16"]) == 0
    shown = capsys.readouterr().out
    assert "2 block(s)" in shown and "GB as float16" in shown and str(folder) in shown
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["dtype"]) == (2, "float16")
    assert main(["generate", shape, str(folder)]) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_a_wrong_dtype_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "opt-125m", str(tmp_path / "model"), "--dtype", "int8"])
    assert "bfloat16" in capsys.readouterr().err
