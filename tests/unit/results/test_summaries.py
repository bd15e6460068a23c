"""Figures over several data sets, against sums written out by hand."""

import math

import pytest

from fedprune.results.perplexity import GEOMETRIC_MEAN, WORST, WORST_RISE, fidelity_table, summaries


def values(dense, pruned, centralized=None, **clients):
    local = None if not clients else {"mean": 0, "best": 0, "worst": 0, "clients": clients}
    return {"dense": dense, "pruned": pruned, "centralized": centralized, "local_only": local}


PERPLEXITY = {
    "code": values(4.0, 16.0, 9.0, a=64.0, b=4.0),
    "law": values(25.0, 36.0, 36.0, a=25.0, b=100.0),
}


def test_means_maxima_and_rises():
    found = summaries(PERPLEXITY)
    assert list(found) == [GEOMETRIC_MEAN, WORST, WORST_RISE]
    mean, worst, rise = found.values()
    assert (mean["dense"], mean["pruned"], mean["centralized"]) == pytest.approx((10, 24, 18))
    assert (worst["dense"], worst["pruned"], worst["centralized"]) == (25, 36, 36)
    assert (rise["dense"], rise["pruned"], rise["centralized"]) == (1, 4, 2.25)


def test_a_client_is_summarised_before_clients_are_compared():
    found = summaries(PERPLEXITY)
    mean, worst = found[GEOMETRIC_MEAN]["local_only"], found[WORST]["local_only"]
    assert mean["clients"] == pytest.approx({"a": 40.0, "b": 20.0})
    assert (mean["mean"], mean["best"], mean["worst"]) == pytest.approx((30, 20, 40))
    assert (worst["best"], worst["worst"]) == (64, 100)
    assert found[WORST_RISE]["local_only"]["clients"] == {"a": 16.0, "b": 4.0}


def test_one_data_set_has_no_summary_nor_has_one_that_could_not_be_read():
    assert summaries({"code": PERPLEXITY["code"]}) == {}
    assert summaries({"code": PERPLEXITY["code"], "gone": values(None, None)}) == {}
    three = summaries({**PERPLEXITY, "gone": values(None, None)})
    assert three == summaries(PERPLEXITY)


@pytest.mark.parametrize("missing", [None, math.inf])
def test_a_model_without_a_figure_everywhere_has_none(missing):
    found = summaries({**PERPLEXITY, "mail": values(9.0, missing, 9.0, a=9.0, b=missing)})
    for name in (GEOMETRIC_MEAN, WORST, WORST_RISE):
        assert found[name]["pruned"] is None
        assert found[name]["local_only"]["clients"]["b"] is None
        assert found[name]["local_only"]["clients"]["a"] is not None
        assert found[name]["centralized"] is not None
    everywhere = summaries({"x": values(2.0, 3.0), "y": values(2.0, 3.0, a=missing)})
    assert everywhere[WORST]["local_only"] is None


def test_a_client_that_is_missing_on_one_data_set_has_none():
    found = summaries({"x": values(2.0, 3.0, a=1.0, b=2.0), "y": values(2.0, 3.0, a=4.0)})
    assert found[GEOMETRIC_MEAN]["local_only"]["clients"] == {"a": 2.0, "b": None}


def close(kl, top1):
    return {"kl": kl, "top1": top1}


def test_agreement_has_a_row_a_data_set_their_mean_and_the_worst_of_each_figure():
    found = {
        "code": {"pruned": close(0.5, 0.25), "centralized": close(0.25, 0.5)},
        "law": {"pruned": close(0.1, 0.75), "centralized": close(None, 0.5)},
    }
    header, rows = fidelity_table(found)
    assert header == [
        "data set",
        "KL, federated",
        "same top token, federated",
        "KL, centralised",
        "same top token, centralised",
    ]
    assert rows == [
        ["code", "0.5000", "25.0%", "0.2500", "50.0%"],
        ["law", "0.1000", "75.0%", "–", "50.0%"],
        ["mean", "0.3000", "50.0%", "–", "50.0%"],
        [WORST, "0.5000", "25.0%", "–", "50.0%"],
    ]
    only = {"law": {"pruned": close(0.1, 0.75)}}
    assert fidelity_table(only)[1] == [["law", "0.1000", "75.0%"]]
