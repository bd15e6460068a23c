"""Zero-shot tasks: what is asked for, and scores where lm-evaluation-harness is installed."""

import importlib.metadata
import importlib.util
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedprune.cli import main
from fedprune.config import config_from_overrides
from fedprune.errors import ConfigError, DataError, ModelError
from fedprune.evaluation.zero_shot import PAPER_TASKS, ZeroShot, load_tasks, task_names, zero_shot
from fedprune.models.embedded import demo_model_path
from tests.support.jobs import job
from tests.support.tasks import ROWS, local_task


def test_names_are_spelt_out_and_not_repeated():
    assert task_names("paper,boolq, mine") == [*PAPER_TASKS, "mine"]
    assert task_names("") == []


def test_files_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = local_task(tmp_path)
    (tmp_path / "boolq").mkdir()  # a task, whatever else bears its name
    config = config_from_overrides(["evaluation.tasks=boolq,mine.yaml"])
    assert config.evaluation.tasks == f"boolq,{path}"
    with pytest.raises(ConfigError, match="`evaluation.tasks` must be tasks"):
        config_from_overrides(["evaluation.tasks=boolq,,rte"])


def test_without_the_harness_it_is_said_how_to_get_it(monkeypatch, tmp_path, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    path = local_task(tmp_path)
    with pytest.raises(ConfigError, match="pip install 'fedprune\\[eval\\]'"):
        load_tasks([str(path)])
    assert main(["evaluate", str(demo_model_path()), "--tasks", "boolq"]) == 2
    assert "fedprune[eval]" in capsys.readouterr().err


def test_the_mean_is_of_tasks_that_all_have_an_accuracy():
    assert ZeroShot("1", {"a": {"acc": 0.5}, "b": {"acc": 0.75, "acc_norm": 1.0}}).mean == 0.625
    assert ZeroShot("1", {"a": {"acc": 0.5}, "b": {"perplexity": 3.0}}).mean is None
    assert ZeroShot("1").to_dict() == {"harness": "1", "tasks": {}, "mean": None}


harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra `eval` is not installed"
)


def accuracy(folder) -> float:
    """Return how often the answer that the model finds more likely is right."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def likelihood(question: str, answer: str) -> float:
        start = len(tokenizer(question)["input_ids"])
        tokens = torch.tensor([tokenizer(f"{question} {answer}")["input_ids"]])
        with torch.no_grad():
            logs = model(tokens).logits[0].double().log_softmax(-1)
        found = [logs[place - 1, tokens[0, place]] for place in range(start, tokens.shape[1])]
        return float(sum(found))

    right = 0
    for row in ROWS:
        found = [likelihood(row["question"], choice) for choice in row["choices"]]
        right += found.index(max(found)) == row["answer"]
    return right / len(ROWS)


@harness
def test_scores_against_likelihoods_by_hand(tmp_path):
    tasks, folder = load_tasks([str(local_task(tmp_path))]), demo_model_path()
    found = zero_shot(str(folder), tasks, "cpu")
    assert found.harness == importlib.metadata.version("lm_eval")
    expected = accuracy(folder)
    assert 0 < expected < 1
    assert found.tasks["mine"]["acc"] == expected == found.mean
    spread = math.sqrt(expected * (1 - expected) / (len(ROWS) - 1))
    assert found.tasks["mine"]["acc_stderr"] == pytest.approx(spread)


@harness
def test_a_run_scores_dense_and_pruned_model(tmp_path):
    path = local_task(tmp_path)
    results = job(tmp_path / "run", f"evaluation.tasks={path}", "sparsity=0.9", clients=1)
    found = results["zero_shot"]
    assert found["dense"]["tasks"]["mine"]["acc"] == accuracy(demo_model_path())
    assert found["pruned"]["tasks"]["mine"]["acc"] == accuracy(tmp_path / "run" / "model")
    assert found["pruned"]["harness"] == importlib.metadata.version("lm_eval")


@harness
def test_the_command_prints_them(tmp_path, capsys):
    command = ["evaluate", str(demo_model_path()), "evaluation.max_windows=1", "--json"]
    assert main([*command, "--tasks", str(local_task(tmp_path))]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["zero_shot"]["mean"] == accuracy(demo_model_path())


@harness
def test_what_cannot_be_had_is_told_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="which does not exist"):
        load_tasks([str(tmp_path / "none.yaml")])
    path = local_task(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="data set of task .* cannot be had"):
        load_tasks([str(path)])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        zero_shot(str(tmp_path), {}, "cpu")


@harness
@pytest.mark.slow
def test_published_names_are_known_and_their_texts_come_from_the_hub():
    with pytest.raises(ConfigError, match="Did you mean 'boolq'"):
        load_tasks(["bolq"])
    with pytest.raises(DataError, match="task 'boolq' .*Hub.*connection"):
        load_tasks(["boolq"])
