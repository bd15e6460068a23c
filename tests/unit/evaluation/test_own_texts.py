"""Figures of clients' own texts: the mean over all tokens, the worst by growth, who is left out."""

import math

import pytest

from fedprune.evaluation.own_texts import OwnTextResult, own_text_figures

RESULTS = {
    "a": OwnTextResult(dense_nll=2.0, pruned_nll=2.5, tokens=300),
    "b": OwnTextResult(dense_nll=4.0, pruned_nll=4.1, tokens=100),
}


def test_the_mean_is_that_of_all_tokens_as_if_in_one_text():
    found = own_text_figures(RESULTS, {"c": "gone"})
    total_dense, total_pruned = 2.0 * 300 + 4.0 * 100, 2.5 * 300 + 4.1 * 100
    assert found["mean"]["dense"] == pytest.approx(math.exp(total_dense / 400))
    assert found["mean"]["pruned"] == pytest.approx(math.exp(total_pruned / 400))
    assert found["mean"]["ratio"] == pytest.approx(math.exp((total_pruned - total_dense) / 400))
    assert found["mean"]["tokens"] == 400
    assert found["clients"]["b"]["pruned"] == pytest.approx(math.exp(4.1))
    assert found["left_out"] == {"c": "gone"}


def test_the_worst_is_not_who_has_the_hardest_text():
    assert own_text_figures(RESULTS, {})["worst"] == "a"


def test_nobody_measured_and_a_destroyed_model():
    assert own_text_figures({}, {"a": "gone"}) == {
        "clients": {},
        "mean": None,
        "worst": None,
        "left_out": {"a": "gone"},
    }
    broken = own_text_figures({"a": OwnTextResult(1.0, 1e6, 5)}, {})
    assert broken["clients"]["a"]["pruned"] is None and broken["mean"]["ratio"] is None
    assert broken["clients"]["a"]["dense"] == pytest.approx(math.e)
