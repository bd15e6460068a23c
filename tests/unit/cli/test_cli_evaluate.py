"""`fedprune evaluate` on folders, runs and what is neither."""

import json
import math
from pathlib import Path

import pytest

from fedprune.cli import evaluate, main
from fedprune.config import config_from_overrides
from fedprune.evaluation.perplexity import Perplexity
from fedprune.models.embedded import demo_model_path


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    folder = tmp_path / "a run, finished"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("below", ["", "model"])
def test_a_run_s_folder_or_its_model(
    a_run: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(a_run.parent)
    assert evaluate.model_folder(f"{a_run.name}/{below}") == a_run / "model"


def test_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "`config.json`" in capsys.readouterr().err


def test_a_wrong_override_is_refused(a_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(a_run), "evaluation.sequence=3"]) == 2
    assert "evaluation.sequence" in capsys.readouterr().err


def test_what_is_printed(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Perplexity(perplexity=22.43, nll=3.11, windows=558, tokens=70866)
    asked = []
    monkeypatch.setattr(evaluate, "measure", lambda config: asked.append(config) or found)
    assert main(["evaluate", str(a_run), "evaluation.seq_len=64"]) == 0
    assert "perplexity 22.430 on stdlib (558 windows of 64 tokens" in capsys.readouterr().out
    assert main(["evaluate", str(a_run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["perplexity"], printed["windows"], printed["data"]) == (22.43, 558, "stdlib")
    assert asked[0].model.path == str(a_run / "model")
    assert asked[0].evaluation.seq_len == 64


def test_the_demo_model_is_measured() -> None:
    overrides = [f"model={demo_model_path()}", "evaluation.max_windows=2", "evaluation.seq_len=32"]
    found = evaluate.measure(config_from_overrides(overrides))
    assert (found.windows, found.tokens) == (2, 62)
    assert found.perplexity == pytest.approx(math.exp(found.nll))
    assert 1 < found.perplexity < 1024
