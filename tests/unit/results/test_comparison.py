"""What `compare` finds between runs."""

import json

import numpy as np
import pytest

from fedprune.errors import FedpruneError
from fedprune.models.export import SIDECAR
from fedprune.results.comparison import _different, compare_runs, mask_agreement
from tests.support.runs import SHAPES, drawn, packed, run


def test_agreement_is_the_share_of_equal_bits():
    one, other = drawn(1), drawn(2)
    found = mask_agreement(packed(one), packed(other))
    for name in SHAPES:
        pairs = [(one[b][name] == other[b][name]).ravel() for b in one]
        assert found["kinds"][name] == pytest.approx(np.concatenate(pairs).mean())
    everything = [(one[b][n] == other[b][n]).ravel() for b in one for n in SHAPES]
    assert found["equal"] == pytest.approx(np.concatenate(everything).mean())
    assert mask_agreement(packed(one), packed(one))["equal"] == 1.0


def test_masks_that_cannot_be_compared():
    one = packed(drawn(1))
    assert mask_agreement(one, None) == {"why_not": "its masks are gone"}
    assert "differ" in mask_agreement(one, packed(drawn(1, blocks=3)))["why_not"]


def test_only_what_differs_is_told(tmp_path):
    masks = drawn(1)
    other = {0: masks[0], 1: drawn(3)[1]}
    first = run(tmp_path / "a", masks)
    second = run(tmp_path / "b", other, "sparsity=0.6", "seed=3", pruned=25.0)
    found = compare_runs([first, second])
    assert found["configuration"] == {"sparsity": [0.5, 0.6], "seed": [0, 3]}
    assert found["perplexity"]["text"] == {
        "dense": [10.0, 10.0],
        "pruned": [12.5, 25.0],
        "ratio": [1.0, 2.0],
    }
    zeros = [
        1 - np.concatenate([mask.ravel() for mask in one[1].values()]).mean()
        for one in (masks, other)
    ]
    assert list(found["sparsity"]["blocks"]) == ["1"]
    assert found["sparsity"]["blocks"]["1"] == pytest.approx(zeros)
    assert found["bytes_up"][0] == found["bytes_up"][1] > 0
    assert found["masks"][0]["equal"] == 1.0 > found["masks"][1]["equal"]
    json.dumps(found)


def test_true_is_not_one():
    assert _different([{"a": 1, "b": 1.0, "c": None}, {"a": True, "b": 1, "c": "None"}]) == {
        "a": [1, True],
        "c": [None, "None"],
    }


def test_runs_without_masks_or_figures_are_compared_as_far_as_they_go(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b", drawn(1))
    results = json.loads((second / "results.json").read_text())
    results["perplexity"] = {"other": {"dense": None, "pruned": None}}
    (second / "results.json").write_text(json.dumps(results))
    found = compare_runs([first, second])
    assert found["perplexity"]["text"]["pruned"] == [12.5, None]
    assert found["perplexity"]["other"]["ratio"] == [None, None]
    assert [one["why_not"] for one in found["masks"]] == ["its masks are gone"] * 2


def test_masks_are_found_where_an_export_keeps_them(tmp_path):
    first, second = run(tmp_path / "a", drawn(1)), run(tmp_path / "b", drawn(1))
    exported = second / "model" / SIDECAR
    exported.parent.mkdir(parents=True)
    (second / "masks.safetensors").rename(exported)
    assert [one["equal"] for one in compare_runs([first, second])["masks"]] == [1.0, 1.0]


def test_a_configuration_that_cannot_be_read_is_named(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    config = second / "config.yaml"
    config.write_text(config.read_text().replace("  window: null\n", ""))
    with pytest.raises(
        FedpruneError, match=r"b/config\.yaml' was written by another version.*window"
    ):
        compare_runs([first, second])
    config.unlink()
    with pytest.raises(FedpruneError, match=r"b/config\.yaml' cannot be read: No such file"):
        compare_runs([first, second])


def test_missing_and_failed_runs_are_told_apart(tmp_path):
    good = run(tmp_path / "a")
    with pytest.raises(FedpruneError, match="'.*nowhere' is not there"):
        compare_runs([good, tmp_path / "nowhere"])
    failed = tmp_path / "failed"
    failed.mkdir()
    with pytest.raises(FedpruneError, match=r"needs `results\.json`"):
        compare_runs([good, failed])
    (failed / "failure.json").write_text('{"reason": "1 of 2 nodes can take part"}')
    with pytest.raises(FedpruneError, match="failed: 1 of 2 nodes can take part"):
        compare_runs([good, failed])
