"""`fedprune evaluate` on folders, runs and what is neither."""

import json
import math

import pytest

from fedprune.cli import evaluate, main
from fedprune.config import config_from_overrides, to_yaml
from fedprune.evaluation.perplexity import Perplexity
from fedprune.evaluation.sizes import ModelSizes
from fedprune.evaluation.speed import LinearSpeed, Speed
from fedprune.evaluation.zero_shot import ZeroShot
from fedprune.models.embedded import demo_model_path
from tests.support.architectures import tiny_model
from tests.support.folders import save_folder
from tests.support.jobs import striped_demo

LINEAR = LinearSpeed("mlp.up_proj", (8, 4), 0.0015, None)


@pytest.fixture
def a_run(tmp_path):
    folder = tmp_path / "a run, finished"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.mark.parametrize("below", ["", "model"])
def test_a_run_s_folder_or_its_model(a_run, below, monkeypatch):
    monkeypatch.chdir(a_run.parent)
    assert evaluate.model_folder(f"{a_run.name}/{below}") == a_run / "model"


def test_another_folder_is_refused(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "`config.json`" in capsys.readouterr().err


def test_a_wrong_override_is_refused(a_run, capsys):
    assert main(["evaluate", str(a_run), "evaluation.sequence=3"]) == 2
    assert "evaluation.sequence" in capsys.readouterr().err


def test_what_is_printed(a_run, monkeypatch, capsys):
    found = evaluate.Findings(
        folder=a_run / "model",
        seq_len=64,
        sizes=ModelSizes(dense=1_000_000, masks=31_250, bits_and_values=531_250),
        perplexities={
            "stdlib": Perplexity(perplexity=22.43, nll=3.11, windows=558, tokens=35_154),
            "mine": Perplexity(perplexity=7.5, nll=2.01, windows=3, tokens=189),
        },
        missing={"ptb": "no network"},
        tasks=ZeroShot("0.4.13", {"boolq": {"acc": 0.5, "acc_stderr": 0.25}}),
        speed=Speed("cpu", "float32", 512, 900.0, 901.0, None, "this is a CPU", (LINEAR,)),
    )
    asked = []
    monkeypatch.setattr(
        evaluate, "measure", lambda folder, config, speed, _: asked.append((config, speed)) or found
    )
    command = ["evaluate", str(a_run), "evaluation.seq_len=64", "--tasks", "boolq", "--speed"]
    assert main(command) == 1  # a data set is missing
    shown = capsys.readouterr()
    for words in (
        "perplexity 22.430 on stdlib (558 windows of 64 tokens, 3.1100 nats",
        "perplexity 7.500 on mine (3 windows",
        "boolq: acc 0.5000 ± 0.2500",
        "mean accuracy 0.5000, lm-evaluation-harness 0.4.13",
        "weights: 1.0 MB on the disk, 31.2 kB masks, 531.2 kB masks and surviving values",
        "cpu, float32, 512 tokens a pass: 900 tokens/s without zeros, 901 with zeros multiplied",
        "mlp.up_proj (8x4): 1,500 us dense",
        "2:4 is not measured: this is a CPU.",
    ):
        assert words in shown.out
    assert "not measured on 'ptb': no network" in shown.err
    ((config, speed),) = asked
    assert config.model.path == str(a_run / "model")
    assert (config.evaluation.seq_len, config.evaluation.tasks, speed) == (64, "boolq", True)


def test_one_json_object_for_programs(a_run, monkeypatch, capsys):
    scored = Perplexity(perplexity=22.43, nll=3.11, windows=558, tokens=70866)
    found = evaluate.Findings(a_run, 128, ModelSizes(dense=10), {"stdlib": scored})
    monkeypatch.setattr(evaluate, "measure", lambda *_: found)
    assert main(["evaluate", str(a_run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": str(a_run),
        "seq_len": 128,
        "sizes": {"dense": 10},
        "perplexity": {
            "stdlib": {"perplexity": 22.43, "nll": 3.11, "windows": 558, "tokens": 70866}
        },
        "missing": {},
        "zero_shot": None,
        "speed": None,
    }


def test_a_destroyed_model_is_null_in_json(a_run):
    scored = Perplexity(perplexity=math.inf, nll=800.0, windows=1, tokens=127)
    told = evaluate.Findings(a_run, 128, ModelSizes(dense=10), {"stdlib": scored}).to_dict()
    (found,) = json.loads(json.dumps(told, allow_nan=False))["perplexity"].values()
    assert found == {"perplexity": None, "nll": 800.0, "windows": 1, "tokens": 127}


@pytest.mark.parametrize(
    ("overrides", "name", "seq_len"),
    [([], "ptb", 64), (["evaluation.seq_len=32"], "ptb", 32), (["data=c4"], "c4", 64)],
)
def test_a_run_s_model_is_measured_as_the_run_did(a_run, monkeypatch, overrides, name, seq_len):
    made = config_from_overrides(["data=ptb", "evaluation.seq_len=64", "evaluation.tasks=boolq"])
    (a_run / "config.yaml").write_text(to_yaml(made))
    found = evaluate.Findings(a_run, 64, ModelSizes(dense=10), {})
    asked = []
    monkeypatch.setattr(
        evaluate, "measure", lambda folder, config, *_: asked.append(config) or found
    )
    assert main(["evaluate", str(a_run), *overrides]) == 0
    (config,) = asked
    assert config.data == config_from_overrides([f"data={name}"]).data
    assert (config.evaluation.seq_len, config.evaluation.tasks) == (seq_len, "")


def test_the_demo_model_on_several_data_sets(tmp_path):
    (tmp_path / "mine.txt").write_text("Return the path of the file, if there is one. " * 20)
    found = measured(f"evaluation.datasets={tmp_path / 'mine.txt'},/no/such/texts")
    (own, mine) = found.perplexities.values()
    assert (own.windows, own.tokens) == (2, 62)
    for one in (own, mine):
        assert one.perplexity == pytest.approx(math.exp(one.nll))
        assert 1 < one.perplexity < 1024
    assert list(found.missing) == ["texts"] and "does not exist" in found.missing["texts"]
    weights = demo_model_path() / "model.safetensors"
    assert found.sizes == ModelSizes(dense=weights.stat().st_size)
    assert found.tasks is None and found.speed is None


def test_a_data_set_alone_or_beside_others_scores_the_same(tmp_path):
    (tmp_path / "mine.txt").write_text("Return the path of the file, if there is one. " * 20)
    together = measured(f"evaluation.datasets={tmp_path / 'mine.txt'}").perplexities
    assert measured().perplexities["stdlib"] == together["stdlib"]


def measured(*overrides: str) -> evaluate.Findings:
    config = config_from_overrides([f"model={demo_model_path()}", *SHORT, *overrides])
    return evaluate.measure(demo_model_path(), config)


@pytest.fixture(scope="module")
def pruned_demo(tmp_path_factory):
    """The demo model with all but the first of every two weights of a row gone."""
    return striped_demo(tmp_path_factory.mktemp("sparsity=0.5") / "half=gone", 2)


SHORT = ("evaluation.max_windows=2", "evaluation.seq_len=32")


def test_models_beside_the_first(pruned_demo, capsys):
    assert main(["evaluate", "demo", str(pruned_demo), "demo", *SHORT, "--json"]) == 0
    dense, pruned, twin = json.loads(capsys.readouterr().out)["models"]
    assert "kl" not in dense["perplexity"]["stdlib"]
    close = pruned["perplexity"]["stdlib"]
    assert close["kl"] > 0.1 and 0 <= close["top1"] < 1
    assert (twin["perplexity"]["stdlib"]["kl"], twin["perplexity"]["stdlib"]["top1"]) == (0, 1)
    assert main(["evaluate", "demo", str(pruned_demo), *SHORT]) == 0
    shown = capsys.readouterr().out
    assert "models side by side" in shown and f"{close['kl']:.4f}" in shown
    assert "half=gone" in shown.replace("\n", "")


def test_another_tokenizer_has_no_agreement(tmp_path, capsys):
    folder = save_folder(tiny_model(), tmp_path / "other")
    assert main(["evaluate", "demo", str(folder), *SHORT]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no agreement where a tokenizer is another" in shown
