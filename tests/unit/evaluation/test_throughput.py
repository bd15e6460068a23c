"""Models side by side in processes of their own: figures, ratios, and what goes wrong."""

import multiprocessing
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedprune.errors import ModelError
from fedprune.evaluation import throughput
from fedprune.evaluation.throughput import NEW_TOKENS, compare_throughput
from fedprune.models.embedded import demo_model_path
from tests.support.architectures import tiny_model


def saved(folder):
    """Save a tiny model and return its folder."""
    tiny_model().model.save_pretrained(folder)
    return folder


@pytest.fixture
def forked(monkeypatch):
    """Processes that need not load torch first."""
    monkeypatch.setattr(throughput, "_CONTEXT", multiprocessing.get_context("fork"))


@pytest.mark.slow
def test_figures_are_of_what_was_run(tmp_path):
    small, large = saved(tmp_path / "small"), demo_model_path()
    found = compare_throughput([large, small], seq_len=16, rounds=1)
    assert [one.model for one in found] == [str(large), str(small)]
    assert (found[0].prompt_ratio, found[0].generation_ratio) == (1, 1)
    for one in found:
        assert one.prompt > 0 and one.generation > 0
    # With one round a ratio is the quotient of the two figures.
    assert found[1].prompt_ratio == pytest.approx(found[1].prompt / found[0].prompt)
    assert found[1].generation_ratio == pytest.approx(found[1].generation / found[0].generation)
    bytes_of = [
        sum(p.nbytes for p in AutoModelForCausalLM.from_pretrained(m).parameters())
        for m in (large, small)
    ]
    assert found[0].peak_bytes > bytes_of[0] > bytes_of[1]


def test_a_ratio_is_the_median_over_rounds():
    assert throughput._ratio([2.0, 9.0, 3.0], [1.0, 1.0, 1.0]) == 3.0
    assert throughput._ratio([1.0, 1.0], [2.0, 4.0]) == 0.375


def test_turns_go_to_and_fro_and_the_first_round_does_not_count():
    class Worker:
        def __init__(self, name):
            self.name = name

        def ask(self, what, tokens):
            asked.append((self.name, what, tokens))
            return float(len(asked))

    asked = []
    found = throughput._turns([Worker("a"), Worker("b")], "read", 7, 2)
    assert asked == [(name, "read", 7) for name in "abbaab"]
    assert found == [[4.0, 5.0], [3.0, 6.0]]


def test_reading_and_writing_are_as_long_as_asked(tmp_path, monkeypatch):
    served = throughput._Served(str(saved(tmp_path / "model")), torch.device("cpu"))
    lengths = []
    served._model.register_forward_hook(
        lambda _module, _args, kwargs, _output: lengths.append(kwargs["input_ids"].shape[1]),
        with_kwargs=True,
    )
    served.answer("read", 12)
    assert set(lengths) == {12}
    lengths.clear()
    served.answer("write", 8)
    assert lengths == (len(lengths) // 8) * ([16] + 7 * [1]) != []
    monkeypatch.setattr(throughput, "_LEAST_S", 0)
    lengths.clear()
    served.answer("read", 12)
    assert lengths == [12]


def test_a_time_is_that_of_one_run(tmp_path, monkeypatch):
    served = throughput._Served(str(saved(tmp_path / "model")), torch.device("cpu"))
    clock = iter([0.0, 0.04, 0.08, 0.12, 0.12])  # run until its time can be told
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(served, "_run", lambda *_: None)
    assert served.answer("read", 12) == pytest.approx(0.04)
    assert NEW_TOKENS > 8


def test_what_cannot_be_loaded_is_named(tmp_path, forked):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"'{tmp_path}' cannot be measured: "):
        compare_throughput([tmp_path], rounds=1)


def test_a_process_that_ends_is_told(tmp_path, forked):
    folder = saved(tmp_path / "model")
    with throughput._Worker(str(folder), "cpu") as worker:
        worker.ask("load")
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(ModelError, match=r"ended with -9, probably for want of memory"):
            worker.ask("read", 8)
