"""Requests to measure the final model, the replies, and what a client refuses to measure."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedprune.config import config_from_overrides, replace
from fedprune.errors import ReplyRefusedError, WireError
from fedprune.evaluation.own_texts import OwnTextResult
from fedprune.methods.registry import get_method
from fedprune.records import (
    FinalOrder,
    final_record,
    own_text_record,
    read_own_text,
)
from fedprune.records import read_final as read_request
from fedprune.wire.changes import LinearUpdate, encode_update
from fedprune.wire.masks import BitMask
from tests.support.grid import become_server

ORDER = FinalOrder({0: 3, 2: 4}, 5, b"abcd")
RESULT = OwnTextResult(dense_nll=2.5, pruned_nll=3.0, tokens=127)
CONFIG = config_from_overrides(["strategy.group=row"])
SHAPES = [{"a": (4, 10)}, {"a": (4, 10)}]


def message(content: RecordDict) -> Message:
    become_server()
    return Message(content, 7, "evaluate.federated")


@pytest.mark.parametrize("order", [ORDER, FinalOrder({}, 0, b"")])
def test_requests_come_back_as_they_were(order):
    found = read_request(message(final_record("x: 1", order)))
    assert found == order and list(found.sizes) == list(order.sizes)


def test_results_come_back_as_they_were():
    assert read_own_text(message(own_text_record(RESULT))) == RESULT


def without_array(content):
    content["arrays"] = ArrayRecord()


def without_sizes(content):
    del content["segments"]


def negative(content):
    content["config"]["start"] = -1


def no_start(content):
    content["config"]["start"] = "1"


def false_sizes(content):
    content["segments"] = ConfigRecord({"blocks": [0], "sizes": [0]})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_array, "the array 'segment'"),
        (without_sizes, "record 'segments'"),
        (negative, "its start"),
        (no_start, "'start' must be int"),
        (false_sizes, "blocks and their bytes"),
    ],
)
def test_malformed_requests_are_refused(damage, words):
    content = final_record("x: 1", ORDER)
    damage(content)
    with pytest.raises(ReplyRefusedError, match=words):
        read_request(message(content))


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"dense-nll": 1.0, "num-tokens": 3}, "'pruned-nll'"),
        ({"dense-nll": float("nan"), "pruned-nll": 1.0, "num-tokens": 3}, "'dense-nll'"),
        ({"dense-nll": 1.0, "pruned-nll": float("inf"), "num-tokens": 3}, "'pruned-nll'"),
        ({"dense-nll": 1.0, "pruned-nll": 1.0, "num-tokens": -3}, "'num-tokens'"),
    ],
)
def test_figures_must_be_finite_and_not_negative(metrics, words):
    with pytest.raises(ReplyRefusedError, match=words):
        read_own_text(message(RecordDict({"metrics": MetricRecord(metrics)})))


def test_nothing_but_figures_is_taken():
    content = own_text_record(RESULT)
    content["more"] = ConfigRecord({"text": "private"})
    for strange in (content, RecordDict()):
        with pytest.raises(ReplyRefusedError, match="'metrics' only"):
            read_own_text(message(strange))


def read_result(config, block: int, data: bytes):
    exchange = get_method(config.strategy.name).exchange(config)
    return exchange.read_result(SHAPES[block], block, len(SHAPES), data)


def encoded(keep_columns: int, keeps=None) -> bytes:
    mask = np.zeros((4, 10), dtype=bool)
    mask[:, :keep_columns] = True
    return encode_update({"a": LinearUpdate(BitMask.from_bool(mask), keeps, 3)})


COUNTS = np.full(20, 2, dtype=np.uint8)


def test_what_the_configuration_asks_of_the_server_is_measured():
    assert read_result(CONFIG, 1, encoded(5))["a"].mask.survivors == 20
    scaling = replace(CONFIG, strategy=replace(CONFIG.strategy, scaling=True))
    assert read_result(scaling, 1, encoded(5, COUNTS))["a"].keeps.tolist() == [2] * 20


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(5)[:-1], "these arrays must have 241 bytes, got 240"),
        (encoded(6), "row 0 must have 5 survivors, got 6"),
        (encoded(5, COUNTS), "must not be scaled"),
    ],
)
def test_anything_else_is_refused(data, words):
    with pytest.raises(WireError, match=words):
        read_result(CONFIG, 1, data)


def test_after_several_rounds_a_block_may_be_less_sparse():
    rounds = config_from_overrides(["strategy=fedspallm", "strategy.rounds=2"])
    assert read_result(rounds, 0, encoded(6))["a"].mask.survivors == 24
