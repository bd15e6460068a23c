"""`fedprune compare` as a person sees it."""

import json

import pytest

from fedprune.cli import main
from fedprune.cli.compare import _letters
from tests.support.runs import drawn, run


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "a", drawn(1))
    run(tmp_path / "b", drawn(2), "sparsity=0.6", pruned=25.0)
    return tmp_path


def test_tables(two, capsys):
    assert main(["compare", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("A = a\nB = b\n")
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    configured = shown[shown.index("Configuration") : shown.index("Results")]
    assert [cell.strip() for cell in configured.splitlines()[4].split("│")[1:4]] == [
        "sparsity",
        "0.5",
        "0.6",
    ]
    assert "2.0000 ×" in lines["perplexity (text), beside A"]
    assert "100.000%" in lines["q_proj"]
    assert "seed" not in lines


def test_no_setting_is_markup(two, capsys):
    run(two / "c", None, "data=files", "data.path=/x", "data.glob=[a]/*.txt")
    run(two / "d", None, "data=files", "data.path=/x", "data.glob=[b]/*.txt")
    assert main(["compare", "c", "d"]) == 0
    assert "[a]/*.txt │ [b]/*.txt" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"perplexity": 1}', "[" * 100_000])
@pytest.mark.parametrize("command", [["compare", "a", "b"], ["report", "b"], ["run", "resume=b"]])
def test_damaged_results_are_told(two, capsys, text, command):
    (two / "b" / "results.json").write_text(text)
    assert main(command) == 1
    shown = capsys.readouterr().err
    assert "`results.json` in '" in shown and "b'" in shown and "Traceback" not in shown


def test_the_same_run_twice(two, capsys):
    assert main(["compare", "a", "a"]) == 0
    assert "The configurations are the same." in capsys.readouterr().out


def test_json(two, capsys):
    assert main(["compare", "a", "b", "a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity"]["text"]["ratio"] == [1.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("runs", "code", "told"), [(["a"], 2, "at least two runs"), (["a", "c"], 1, "'c' is not there")]
)
def test_too_few_and_missing_runs(two, capsys, runs, code, told):
    assert main(["compare", *runs]) == code
    assert told in capsys.readouterr().err


def test_names_never_end():
    letters = _letters()
    found = [next(letters) for _ in range(30)]
    assert found[:2] + found[25:28] == ["A", "B", "Z", "AA", "AB"]
