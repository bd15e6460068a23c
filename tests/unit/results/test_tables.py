"""The end table with clients' own texts and zero-shot tasks."""

import io
import math

import pytest
from rich.console import Console

from fedprune.evaluation.own_texts import OwnTextResult, own_text_figures
from fedprune.evaluation.zero_shot import ZeroShot
from fedprune.results.sweep import Pivot
from fedprune.results.tables import pivot_table, plain_table
from tests.unit.results.test_build import results


def test_clients_own_texts_worst_first_and_who_is_left_out():
    measured = {f"p{n}": OwnTextResult(1.0, 1.0 + n / 10, 1_000 * (n + 1)) for n in range(11)}
    figures = own_text_figures(measured, {"p11": "its text is short"})
    text = plain_table(results() | {"federated_evaluation": figures})
    lines = [line for line in text.splitlines() if line.startswith("│ p")]
    assert [line.split()[1] for line in lines] == [f"p{n}" for n in range(10, 2, -1)]
    assert "p10 (worst)" in lines[0] and lines[0].split()[-2] == "2.72"
    assert "and 3 more" in text and "66,000" in text
    assert "p11 is left out: its text is short" in text
    assert "federated" in text and "perplexity" in text


def test_a_perplexity_that_is_no_number_is_told():
    text = " ".join(plain_table(results(pruned=math.nan, centralized=math.inf)).split())
    assert "federated on text is NaN: the log says where it begins" in text
    assert "centralised on text is infinite" in text
    assert "no_number" not in results()["perplexity"]["text"]


def test_agreement_with_the_dense_model():
    close = {"kl": 0.125, "top1": 0.5}
    found = {name: {"pruned": close} for name in ("[a]", "b")}
    text = plain_table(results() | {"fidelity": found})
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    for name in ("[a]", "b", "mean"):
        assert [name, "0.1250", "50.0%"] in lines
    assert "agreement with the dense model" in text
    assert "agreement with the dense" not in plain_table(results())


def test_nobody_measured():
    figures = own_text_figures({}, {"a": "gone"})
    text = plain_table(results() | {"federated_evaluation": figures})
    assert "a is left out: gone" in text and "mean over tokens" not in text


def test_tasks_with_and_without_accuracy():
    dense = ZeroShot("0.4.13", {"boolq": {"acc": 0.75, "acc_stderr": 0.1}, "lm": {"bits": 2.5}})
    pruned = ZeroShot("0.4.13", {"boolq": {"acc": 0.5, "acc_stderr": 0.1}, "lm": {"bits": 3.5}})
    found = {"dense": dense.to_dict(), "pruned": pruned.to_dict()}
    text = plain_table(results() | {"zero_shot": found})
    for words in (["boolq", "acc", "0.7500", "0.5000"], ["lm", "bits", "2.5000", "3.5000"]):
        assert any(line.replace("│", " ").split() == words for line in text.splitlines())
    assert "lm-evaluation-harness 0.4.13" in text and "│ mean" not in text


@pytest.mark.parametrize(
    "name", ["Klinik [/Nord]", "[red]a", "[a]", ":warning:", "[link=x]y[/link]"]
)
def test_no_name_is_markup(name):
    own = own_text_figures({name: OwnTextResult(1.0, 1.1, 10)}, {f"{name}2": f"why {name}"})
    scores = ZeroShot("0.4", {name: {"acc": 0.75}}).to_dict()
    found = results(local={name: 6.0}) | {"federated_evaluation": own}
    found |= {"zero_shot": {"dense": scores, "pruned": scores}}
    found["method"]["strategy"] = name
    for count in (1, 4):
        found["perplexity"] = {f"{name}{n}": results()["perplexity"]["text"] for n in range(count)}
        text = " ".join(plain_table(found).split())
        shown = [
            f"{name} · wanda",
            f"{name} (worst)",
            f"{name}2 is left out: why {name}",
            f"{name[:8]}",
        ]
        assert [part for part in shown if part not in text] == []
    pivot = Pivot(f"Perplexity ({name})", 1, ("model", name), ((name, "1.00"),))
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(pivot_table(pivot))
    assert buffer.getvalue().count(name) == 3


def test_nothing_steers_a_terminal():
    found = results()
    found["perplexity"] = {"a\x1b[31m\u202eb": found["perplexity"]["text"]}
    assert "\x1b" not in plain_table(found) and "\u202e" not in plain_table(found)


def test_the_data_set_that_lost_most_is_named():
    found = results()
    text = dict(found["perplexity"]["text"])
    found["perplexity"] = {
        "a": text | {"dense": 10.0, "pruned": 20.0},
        "b": text | {"dense": 100.0, "pruned": 130.0},
    }
    assert "worst on a, 2.00 times dense" in " ".join(plain_table(found).split())
    found["perplexity"]["a"]["pruned"] = None
    assert "worst on" not in plain_table(found)
