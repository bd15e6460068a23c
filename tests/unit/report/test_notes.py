"""What the page warns of, and that it is quiet where nothing is wrong."""

import pytest

from fedprune.report.notes import by_chance, notes
from tests.support.reports import made_up

NAMES = [f"partition {place}" for place in range(5)]


def quiet() -> dict:
    results = made_up(NAMES, 2)
    results["agreement"]["tied"] = {"weights": 0, "pruned": 0}
    return results


def titles(results: dict) -> list[tuple[str, str]]:
    return [(note.level, note.title) for note in notes(results)]


def test_nothing_is_said_where_nothing_is_wrong():
    assert notes(quiet()) == []
    statistics = quiet() | {"agreement": None}
    assert notes(statistics) == []


def test_refused_clients_are_named_with_the_reason():
    results = quiet()
    entries = results["ledger"]["entries"]
    entries[0]["refused"] = entries[1]["refused"] = "other weights"
    entries[-1]["refused"] = "too short"
    first, second = notes(results)
    assert first.title == "2 clients refused in the handshake"
    assert first.detail == "partition 0, partition 1: other weights"
    assert second.title == "1 client left out on the way"
    assert second.detail == "partition 4: too short"


def test_many_reasons_are_counted():
    results = made_up([f"partition {place}" for place in range(30)], 2)
    for entry in results["ledger"]["entries"][:30]:
        entry["refused"] = f"reason of {entry['client']}"
    found = [title for level, title in titles(results) if level == "problem"]
    assert len(found) == 9 and found[-1] == "22 more reasons for refusals"


def test_blocks_without_a_reply():
    results = quiet()
    for name in results["sparsity"]["reporters"]:
        if ".1." in name:
            results["sparsity"]["reporters"][name] = 0
    (found,) = notes(results)
    assert (found.level, found.title) == ("problem", "1 block without a reply")
    assert "block 1 " in found.detail


def test_a_destroyed_model_and_one_that_did_not_pay():
    results = quiet()
    results["perplexity"]["text"]["pruned"] = None
    assert titles(results) == [("problem", "The pruned model has no finite perplexity")]
    results["perplexity"]["text"]["pruned"] = 99.0
    assert titles(results) == [("warning", "The federation did not pay")]


def test_sparsity_off_its_target():
    results = quiet()
    results["sparsity"]["target"] = 0.6
    assert titles(results) == [("warning", "Sparsity is off its target")]


def test_agreement_near_chance():
    assert by_chance(0.5) == 0.5 and by_chance(0.9) == pytest.approx(0.82)
    results = quiet()
    results["agreement"]["pairwise"] = 0.74
    assert titles(results) == [("warning", "Clients agree poorly")]
    results["agreement"]["pairwise"] = 0.76
    assert titles(results) == []


def test_a_client_far_from_the_others():
    results = quiet()
    shares = dict.fromkeys(NAMES, 0.98)
    results["agreement"]["clients"]["result"] = shares | {NAMES[3]: 0.95}
    (found,) = notes(results)
    assert found.title == "1 client far from the others"
    assert found.detail.startswith("partition 3: on 5.0% of the weights")
    results["agreement"]["clients"]["result"] = shares | {NAMES[3]: 0.97}
    assert notes(results) == []


def test_masks_that_wanda_does_not_make():
    results = quiet()
    results["strategy"]["violations"] = {"partition 0": 0.001, "partition 1": 0.2}
    (found,) = notes(results)
    assert found.title == "1 client with masks that Wanda does not make"
    assert found.detail.startswith("partition 1: up to 20.0%")


@pytest.mark.parametrize(
    ("weights", "pruned", "level"),
    [(0.5, 0.25, "warning"), (0.5, 0.49, "hint"), (0.5, 0.01, "hint"), (0.02, 0.01, "hint")],
)
def test_ties_matter_as_far_as_they_decide(weights, pruned, level):
    results = quiet()
    total = results["sparsity"]["weights"]
    tied = {"weights": round(weights * total), "pruned": round(pruned * total)}
    results["agreement"]["tied"] = tied
    (found,) = notes(results)
    assert found.level == level
    assert f"{tied['weights']:,} weights" in found.title and f"{tied['pruned']:,}" in found.detail


@pytest.mark.parametrize("ties", ["magnitude", "index"])
def test_ties_are_told_with_what_no_majority_is_for(ties):
    results = quiet()
    results["agreement"]["tied"] = {"weights": 4, "pruned": 1}
    results["method"] |= {"majority_floor": True, "ties": ties}
    (found,) = notes(results)
    assert "no more than half of them do" in found.detail and "the smaller |W|" in found.detail
    results["method"]["majority_floor"] = False
    assert "half" not in notes(results)[0].detail


def test_the_worst_comes_first():
    results = made_up(NAMES, 2, lost=NAMES[:1])
    results["sparsity"]["target"] = 0.6
    assert [level for level, _ in titles(results)] == ["problem", "warning", "hint"]


def test_what_text_never_reaches_was_left_alone():
    results = quiet()
    part = {"name": "model.vision_tower", "kind": "CLIPVisionModel", "parameters": 1234}
    results["model"] |= {"blocks": "model.language_model.layers", "unread": [part]}
    (note,) = notes(results)
    assert note.level == "hint"
    assert "model.vision_tower (CLIPVisionModel, 1,234)" in note.detail
    assert "model.language_model.layers" in note.detail


def test_unequal_weights_are_told_in_words():
    results = quiet()
    blocks = [
        {"block": 0, "error": 0.1, "error_unweighed": 0.2},
        {"block": 1, "error": 0.2, "error_unweighed": 0.4},
    ]
    shares = {name: (place + 1) / 55 for place, name in enumerate("abcdefghij")}
    results["strategy"]["worst"] = {"blocks": blocks, "shares": shares}
    (found,) = notes(results)
    assert found.level == "hint" and "served worst" in found.title
    assert "15.000% on average over the blocks, 30.000%" in found.detail
    assert found.detail.endswith(
        "j 18.2%, i 16.4%, h 14.5%, g 12.7%, f 10.9%, e 9.1%, d 7.3%, c 5.5%, 2 more."
    )
