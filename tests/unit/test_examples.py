"""The examples run as they stand, and do what they say."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedprune.models.embedded import demo_model_path
from fedprune.models.export import SIDECAR, export_model
from fedprune.models.sidecar import read_sidecar
from tests.support.folders import load_folder
from tests.support.masks import random_masks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples") / "model"
    loaded = load_folder(demo_model_path())
    export_model(loaded, random_masks(loaded, survivors=0.8), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--lora"]])
def test_finetuning_lowers_the_loss_and_keeps_every_zero(pruned, tmp_path, arguments):
    if arguments and importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft")
    out = tmp_path / "tuned"
    command = [sys.executable, EXAMPLES / "finetune.py", pruned, out, "--steps", "6", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    before, after = (float(line.split()[-1]) for line in run.stdout.splitlines())
    assert after < before - 0.1
    tuned = load_folder(out)
    masks = read_sidecar(out / SIDECAR)
    assert masks == read_sidecar(pruned / SIDECAR)
    for block, named in masks.items():
        for name, mask in named.items():
            assert not tuned.weight(block, name)[~torch.from_numpy(mask.to_bool())].any()
