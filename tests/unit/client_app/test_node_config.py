"""What a node's operator may say, and what a job has to agree with."""

import pytest

from client_app.node import agreed
from client_app.node_config import NodeConfig
from fedprune.config import config_from_overrides
from fedprune.config.schema import PAYLOADS
from fedprune.data.texts import OwnTexts
from fedprune.errors import ConfigError

ALL = {
    "partition-id": 3,
    "num-partitions": 8,
    "site": "north",
    "data-path": "/data",
    "text-key": "note",
    "glob": "*.jsonl",
    "model-path": "/models/m",
    "max-model-gb": 2.5,
    "min-samples": 16,
    "min-tokens": 4096,
    "max-samples": 64,
    "may-send": "masks, sums",
    "layer-fraction": 0.25,
    "threads": 4,
    "device": "cuda:1",
}


def read(**changes) -> NodeConfig:
    names = {key.replace("_", "-"): value for key, value in changes.items()}
    return NodeConfig.read({"partition-id": 0, **names})


def test_every_key_is_read():
    found = NodeConfig.read(ALL)
    assert not found.problems and not found.warnings
    assert found.texts(config_from_overrides(["data=node"]).data) == OwnTexts(
        "/data", "note", "*.jsonl"
    )
    assert found.texts(config_from_overrides([]).data) is None
    assert (found.partition_id, found.num_partitions, found.site) == (3, 8, "north")
    assert (found.model_path, found.most_model_bytes) == ("/models/m", 2_500_000_000)
    assert (found.min_samples, found.min_tokens, found.max_samples) == (16, 4096, 64)
    assert (found.may_send, found.layer_permille) == (("masks", "sums"), 250)
    assert (found.threads, found.device) == (4, "cuda:1")


def test_a_node_that_says_nothing_limits_nothing_but_models():
    found = read()
    assert not found.problems and found.site == "" and found.num_partitions == 0
    assert found.most_model_bytes == 50_000_000_000 and found.layer_permille == 0
    config = config_from_overrides([])
    assert agreed(found, config) is config


@pytest.mark.parametrize("value", [None, -1, "0", 1.0, True])
def test_without_a_partition_a_node_has_no_name(value):
    with pytest.raises(ConfigError, match="`partition-id` in the node's --node-config must be"):
        NodeConfig.read({} if value is None else {"partition-id": value})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num-partitions", 0, "a whole number of at least 1, got 0"),
        ("num-partitions", "8", "a whole number"),
        ("site", "a" * 65, "at most 64 printable characters"),
        ("site", "a\nb", "at most 64 printable characters"),
        ("site", True, "at most 64 printable characters, got true"),
        ("data-path", 3, "the path of a file or folder"),
        ("data-path", "", "the path of a file or folder"),
        ("text-key", 1.5, "the name of a field"),
        ("glob", "../*", "a relative pattern"),
        ("glob", "/etc/*", "a relative pattern"),
        ("glob", "", "a relative pattern"),
        ("model-path", False, "the path of a model's folder"),
        ("max-model-gb", -1, "a number of at least 0, in GB; 0 takes no model"),
        ("max-model-gb", float("inf"), "a number of at least 0"),
        ("max-model-gb", "50", "a number of at least 0"),
        ("max-model-gb", True, "a number of at least 0"),
        ("min-samples", 0, "a whole number of at least 1"),
        ("min-tokens", 2.0, "a whole number of at least 1"),
        ("max-samples", -3, "a whole number of at least 1"),
        ("may-send", "", "some of masks, weights, sums, moments"),
        ("may-send", "masks;sums", "some of masks, weights, sums, moments"),
        ("may-send", "mask", "some of masks, weights, sums, moments"),
        ("layer-fraction", 0, "above 0 and at most 1, the share of blocks"),
        ("layer-fraction", 1.5, "above 0 and at most 1"),
        ("layer-fraction", "0.5", "above 0 and at most 1"),
        ("layer-fraction", True, "above 0 and at most 1"),
        ("layer-fraction", float("nan"), "above 0 and at most 1"),
        ("threads", 0, "a whole number of at least 1"),
        ("device", "gpu", "'auto', 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
    ],
)
def test_what_is_wrong_names_key_value_and_what_was_expected(key, value, expected):
    (problem,) = NodeConfig.read({"partition-id": 0, key: value}).problems
    assert problem.startswith(f"`{key}` in the node's --node-config must be ")
    assert expected in problem and ", got " in problem


def test_all_problems_are_told_at_once_and_beside_them_the_name():
    found = read(site="north", threads=0, device="gpu", min_samples=9, max_samples=8)
    assert len(found.problems) == 3 and found.site == "north"
    assert "`max-samples`" in found.problems[2] and "`min-samples`, 9, got 8" in found.problems[2]
    with pytest.raises(ConfigError, match=r"`threads`.*`device`.*`max-samples`"):
        agreed(found, config_from_overrides([]))


def test_a_partition_beyond_the_last():
    (problem,) = read(partition_id=4, num_partitions=4).problems
    assert "`partition-id`" in problem and "below `num-partitions`, 4, got 4" in problem


@pytest.mark.parametrize(
    ("key", "right"),
    [("data_path", "data-path"), ("min-sample", "min-samples"), ("max-model-gbs", "max-model-gb")],
)
def test_a_key_with_a_typo_is_told_with_the_right_one(key, right):
    found = NodeConfig.read({"partition-id": 0, key: 3})
    (warning,) = found.warnings
    assert not found.problems
    assert f"'{key}' in the node's --node-config is no key" in warning
    assert f"Did you mean '{right}'?" in warning


def job(*overrides: str):
    small = ("pruner.num_calibration_samples=8", "pruner.seq_len=64")
    return config_from_overrides([*small, *overrides])


@pytest.mark.parametrize(
    ("settings", "overrides", "words"),
    [
        ({"min_samples": 9}, (), "`min-samples`.* is 9, this job calibrates on 8.*to 9 or more"),
        ({"min_tokens": 513}, (), "`min-tokens`.* is 513.*8 samples of 64 tokens, 512"),
        ({"min_tokens": 512}, ("pruner.seq_len=2",), "`min-tokens`.*of 2 tokens, 16"),
        ({"max_samples": 4, "min_tokens": 257}, (), "`min-tokens`.*4 samples of 64 tokens, 256"),
        ({"may_send": "masks"}, ("strategy=fedstats",), "`may-send`.*'masks'.*asks for sums"),
        ({"may_send": "masks"}, ("allocation=owl",), "`may-send`.*asks for sums.*'owl'"),
        ({"may_send": "sums"}, (), "`may-send`.*asks for masks"),
        ({"may_send": "masks"}, ("strategy=fedspallm",), "asks for weights"),
        (
            {"may_send": "masks,weights,sums"},
            ("strategy=fedhessian", "pruner=sparsegpt"),
            "asks for moments",
        ),
    ],
)
def test_a_job_that_the_operator_does_not_agree_to(settings, overrides, words):
    with pytest.raises(ConfigError, match=words):
        agreed(read(**settings), job(*overrides))


def test_a_job_that_the_operator_agrees_to():
    limits = read(min_samples=8, min_tokens=512, may_send="masks,sums", max_samples=8)
    for overrides in ((), ("strategy=fedstats",), ("allocation=owl",)):
        config = job(*overrides)
        assert agreed(limits, config) is config
    assert agreed(read(device="cpu"), job("pruner.device=cuda")).pruner.device == "cpu"


def test_a_node_with_texts_of_its_own_reads_no_others():
    agreed(read(data_path="/data"), job("data=node"))
    agreed(read(data_path="/data"), job())  # a public corpus
    agreed(read(), job("data=/any/other/folder"))
    with pytest.raises(ConfigError, match="`data-path`.*and no others.*Set `data=node`"):
        agreed(read(data_path="/data"), job("data=/any/other/folder"))


def test_a_survey_sends_sums_beside_masks():
    limits = read(may_send="masks")
    agreed(limits, job())
    with pytest.raises(ConfigError, match="`may-send`.*asks for sums"):
        agreed(limits, job("allocation=owl"))


def test_docs_list_every_key():
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for key in ALL:
        assert f"`{key}`" in text, key
    for payload in PAYLOADS:
        assert payload in text
