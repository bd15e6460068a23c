"""Runs that somebody else has started become a table."""

import csv
import json

import pytest

from fedprune.cli import main
from fedprune.cli.hydra_job import objective
from fedprune.cli.sweep_report import _telling
from tests.support.runs import run


def test_settings_are_found_in_the_configurations(tmp_path, capsys):
    strategies = ("fedprllm", "fedspallm")
    for number, (strategy, seed) in enumerate((s, n) for s in strategies for n in (0, 1)):
        run(tmp_path / str(number), None, f"strategy={strategy}", f"seed={seed}", pruned=20 + seed)
    (tmp_path / "0" / ".hydra").mkdir()
    (tmp_path / "0" / ".hydra" / "config.yaml").write_text("not: ours\n")
    assert main(["sweep", "--collect", str(tmp_path)]) == 0
    assert "20.50 ± 0.71" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(row["strategy"], row["seed"]) for row in rows] == [
        ("fedprllm", "0"),
        ("fedprllm", "1"),
        ("fedspallm", "0"),
        ("fedspallm", "1"),
    ]
    page = (tmp_path / "sweep.html").read_text()
    assert 'href="3/report.html"' in page
    assert (tmp_path / "3" / "report.html").is_file()


def test_failed_runs_are_told(tmp_path, capsys):
    run(tmp_path / "0", None)
    failed = run(tmp_path / "1", None, "sparsity=0.6")
    (failed / "results.json").unlink()
    (failed / "failure.json").write_text('{"reason": "no quorum"}')
    cut = run(tmp_path / "2", None, "sparsity=0.7")
    (cut / "results.json").unlink()
    (cut / "run.log").touch()
    assert main(["sweep", "--collect", str(tmp_path)]) == 1
    page = (tmp_path / "sweep.html").read_text()
    assert "no quorum" in page and "it has not ended" in page


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_damaged_results_are_those_of_a_failed_run(tmp_path, text):
    run(tmp_path / "0", None)
    (run(tmp_path / "1", None, "sparsity=0.6") / "results.json").write_text(text)
    assert main(["sweep", "--collect", str(tmp_path)]) == 1
    assert "`results.json` in" in (tmp_path / "sweep.html").read_text()


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main(["sweep", "--collect", str(tmp_path)]) == 2
    assert "there is none in" in capsys.readouterr().err


def test_nothing_and_both_are_refused():
    for arguments in (["sweep"], ["sweep", "seed=0,1", "--collect", "x"]):
        with pytest.raises(SystemExit):
            main(arguments)


def test_keys_that_follow_from_others_tell_nothing():
    runs = [
        {"seed": seed, "damping": "1" if name == "x" else "2", "pruner.name": name, "same": "0"}
        for name in ("x", "y")
        for seed in ("0", "1")
    ]
    assert _telling(runs) == ["pruner.name", "seed"]
    assert _telling([{"a": "1"}, {"a": "1"}]) == []


def figures(**pruned: float | None) -> dict:
    return {"perplexity": {name: {"pruned": value} for name, value in pruned.items()}}


def test_the_objective_is_one_figure():
    assert objective(figures(a=4.0)) == 4.0
    assert objective(figures(a=4.0, b=9.0)) == pytest.approx(6.0)
    assert objective(figures(a=4.0, b=None)) == float("inf")
    assert objective(json.loads(json.dumps(figures(a=None)))) == float("inf")
