import json
import math

import pytest

from fedprune.config import config_from_overrides
from fedprune.models.fingerprint import Fingerprint
from fedprune.reporting.ledger import Ledger
from fedprune.reporting.results import Facts, LinearFigures, Perplexities, build_results
from fedprune.reporting.table import plain_table

FACTS = Facts(config_from_overrides([]), 3, Fingerprint("c", "w", "5"), "s", {"total": 2.0})
LINEARS = [
    LinearFigures("h.0.a", 100, 50, 2, [40, 20, 40], 0.8, 0.8),
    LinearFigures("h.0.b", 300, 150, 2, [150, 0, 150], 1.0, 1.0),
    LinearFigures("h.1.a", 100, 51, 1, [49, 51], 1.0, 1.0),
]


def results(**perplexities):
    values = {"dense": 4.0, "pruned": 5.0, "centralized": 4.5, "local": {"a": 6.0, "b": 8.0}}
    found = Perplexities("text", **(values | perplexities))
    return build_results(FACTS, LINEARS, [found], [], Ledger())


def test_sparsity_and_agreement_are_weighted_by_size():
    found = results()
    assert found["sparsity"]["overall"] == 251 / 500
    assert found["sparsity"]["linears"]["h.1.a"] == 0.51
    assert found["agreement"]["pairwise"] == pytest.approx((80 + 300 + 100) / 500)
    assert found["agreement"]["votes_by_voters"] == {"2": [190, 20, 190], "1": [49, 51]}


def test_local_only_summary():
    local = results()["perplexity"]["text"]["local_only"]
    assert (local["mean"], local["best"], local["worst"]) == (7.0, 6.0, 8.0)
    assert results(local={})["perplexity"]["text"]["local_only"] is None


def test_a_destroyed_model_does_not_lose_the_run():
    found = results(pruned=math.inf, centralized=math.nan, local={"a": math.inf, "b": 8.0})
    text = json.dumps(found, allow_nan=False)
    values = json.loads(text)["perplexity"]["text"]
    assert values["pruned"] is None and values["centralized"] is None
    assert values["local_only"]["clients"] == {"a": None, "b": 8.0}
    assert values["local_only"]["mean"] == 8.0


def test_table_shows_every_measured_row():
    text = plain_table(results())
    for cell in ("dense", "4.00", "federated", "5.00", "centralised", "4.50", "6.00", "8.00"):
        assert cell in text
    assert "50.20% of 500 weights pruned" in text
    assert "centralised" not in plain_table(results(centralized=None))
