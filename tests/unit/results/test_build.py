import dataclasses
import json
import math
from pathlib import Path

import pytest

from fedprune.config import config_from_overrides
from fedprune.models.fingerprint import Fingerprint
from fedprune.report.page import render_page
from fedprune.results.build import (
    ClientAgreement,
    Facts,
    LinearFigures,
    Perplexities,
    build_results,
)
from fedprune.results.ledger import Ledger
from fedprune.results.tables import plain_table
from fedprune.results.words import Words
from tests.support.reports import made_up

WORDS = Words("FedPrLLM", "clients vote", "masks", "Something.")
FACTS = Facts(config_from_overrides([]), WORDS, 3, Fingerprint("c", "w", "5"), "s", {"total": 2.0})
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


def test_votes_of_clients_that_weigh_unequally_are_counted_by_their_total():
    # With layer sampling two clients vote on each block, not the same two, so the totals differ.
    linears = [
        LinearFigures("h.0.a", 100, 50, 2, [40, 10, 10, 40], 0.8, 0.8),  # they weigh 1 and 2
        LinearFigures("h.1.a", 100, 50, 2, [30, 10, 10, 10, 40], 0.8, 0.8),  # 1 and 3
        LinearFigures("h.1.b", 50, 25, 2, [25, 0, 0, 5, 20], 0.8, 0.8),
        LinearFigures("h.2.a", 10, 5, 3, [5, 0, 1, 4], 0.8, 0.8),  # 1, 1 and 1: three votes, too
    ]
    found = build_results(FACTS, linears, [], [], Ledger())["agreement"]["votes_by_voters"]
    assert found == {"3": [45, 10, 11, 44], "4": [55, 10, 10, 15, 60]}
    assert sum(map(sum, found.values())) == sum(linear.weights for linear in linears)


def test_what_a_method_says_of_itself_is_in_the_results():
    assert results()["strategy"]["label"] == "FedPrLLM"
    facts = dataclasses.replace(FACTS, words=Words("Lottery", "draw", "a number", "Nothing."))
    found = build_results(facts, LINEARS, [], [], Ledger())["strategy"]
    assert found == {"label": "Lottery", "does": "draw", "sends": "a number", "tells": "Nothing."}


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
    own = values["local_only"]
    assert (own["best"], own["mean"], own["worst"]) == (8.0, None, None)
    everyone = results(local={"a": math.inf})["perplexity"]["text"]["local_only"]
    assert everyone == {"mean": None, "best": None, "worst": None, "clients": {"a": None}}


def test_table_shows_every_measured_row():
    text = plain_table(results())
    for cell in ("dense", "4.00", "federated", "5.00", "centralised", "4.50", "6.00", "8.00"):
        assert cell in text
    assert "50.20% of 500 weights pruned" in text
    assert "centralised" not in plain_table(results(centralized=None))
    assert "no client" not in text and "4.75" in plain_table(results(no_client=4.75))


def test_a_method_speaks_for_itself():
    found = made_up(["a", "b"], 2)
    own = Words("FedOwn [x]", "clients do <this>", "nothing", "Nothing.")
    found["strategy"] |= dataclasses.asdict(own)
    page = render_page(found, "", Path("/runs/one"))
    assert "FedOwn [x]" in page and "clients do &lt;this&gt;" in page
    assert "counts votes" not in page


def test_one_client_is_no_crowd():
    assert "1 client ·" in plain_table(made_up(["a"]))


def tied(*overrides):
    config = config_from_overrides(list(overrides))
    facts = Facts(config, WORDS, 3, Fingerprint("c", "w", "5"), "s", {"total": 2.0})
    linears = [
        LinearFigures("h.0.a", 100, 50, 2, [40, 20, 40], 0.8, 0.8, (20, 10)),
        LinearFigures("h.0.b", 100, 50, 2, [45, 10, 45], 0.9, 0.9, (10, 2)),
    ]
    return build_results(facts, linears, [], [], Ledger())["agreement"]["tied"]


def test_ties_are_told_where_a_histogram_can_tell_them():
    assert tied() == tied("strategy=fedspallm") == {"weights": 30, "pruned": 12}
    for other in ("strategy.group=row", "strategy.decode=true"):
        assert tied(other) is None
    assert tied("pruner.pattern=2:4") is None


def test_agreement_by_client_and_reporters():
    shares = ClientAgreement(64, {"a": 1 / 3, "b": 0.5}, ["a", "b"], [[1.0, 2 / 3], [None, 1.0]])
    found = build_results(FACTS, LINEARS, [], [], Ledger(), shares)
    clients = found["agreement"]["clients"]
    assert clients["result"] == {"a": 0.33333, "b": 0.5}
    assert clients["matrix"] == [[1.0, 0.66667], [None, 1.0]]
    assert (clients["weights"], clients["matrix_clients"]) == (64, ["a", "b"])
    assert found["sparsity"]["reporters"] == {"h.0.a": 2, "h.0.b": 2, "h.1.a": 1}


def test_experts_are_counted_over_all_clients():
    def of(expert, tokens, votes=()):
        name = f"{expert}.up_proj"
        return LinearFigures(
            name, 100, 50, 2, list(votes), None, None, expert=expert, tokens=tokens
        )

    def counted(*linears):
        return build_results(FACTS, linears, [], [], Ledger())["experts"]

    assert counted(*LINEARS) is None
    assert counted(of("a", None)) is None  # nobody looked
    seen = [of("a", 0), of("b", 99), of("c", 100)]
    expected = {"experts": 3, "unseen": 1, "few_tokens": 100, "few": 2}
    assert counted(*seen, *LINEARS) == expected
    assert counted(of("a", 0), of("b", None, [50, 50])) == {
        "experts": 2,
        "unseen": 1,
        "few_tokens": 100,
        "few": None,
    }
