"""What a whole job leaves for others: a card in the model's folder, and its course in a tracker."""

import importlib.util

import pytest
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError
from fedprune.models.loading import load_model
from server_app.job import run_job
from tests.support.grid import LocalGrid
from tests.support.jobs import job


def test_a_job_leaves_a_card_and_its_course(tmp_path):
    results = job(tmp_path / "run", "tracking=tensorboard", "card.license=mit")
    card = ModelCard.load(tmp_path / "run" / "model" / "README.md")
    (found,) = card.data.eval_results
    assert found.metric_value == round(results["perplexity"]["stdlib"]["pruned"], 4)
    assert card.data.license == "mit"
    for client in results["clients"]:
        assert client["name"] not in str(card)

    read = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "fedprune"))
    read.Reload()
    blocks = len(load_model(config_from_overrides([]).model).layout.blocks)
    up = read.Scalars("bytes/up")
    assert [event.step for event in read.Scalars("block/sparsity")] == list(range(1, blocks + 1))
    assert up[-1].step == blocks + 1 and up[-1].value == results["ledger"]["bytes_up"]
    (end,) = read.Scalars("perplexity/stdlib/pruned")
    assert end.value == pytest.approx(results["perplexity"]["stdlib"]["pruned"])
    for path in (tmp_path / "run" / "tensorboard").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content
            assert not any(client["name"].encode() in content for client in results["clients"])


def test_a_missing_tracker_stops_a_job_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = {"overrides": "tracking=mlflow", "output-dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match="pip install mlflow"):
        run_job(LocalGrid(app, 2), options, 1)
    assert not (tmp_path / "run").exists()
