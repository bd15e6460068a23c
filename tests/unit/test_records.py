from dataclasses import replace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.records import (
    BUNDLE_FORMAT,
    LocalResult,
    NodeReport,
    Order,
    PruneReply,
    local_record,
    message_bytes,
    order_record,
    prune_record,
    read_ahead,
    read_bundle,
    read_local,
    read_order,
    read_prune,
    read_report,
    report_record,
    request,
    requested,
)
from tests.support.grid import become_server

MASKS = "fedprune.masks.v2"

REPORT = NodeReport(3, 8, "north", "c" * 64, "w" * 64, "s" * 64, 2, 256, "cpu", 1 << 34, "v", "")
REPLY = PruneReply({4: b"four", 5: b"fives"}, 1.5, 1000, 0, 2)
LIMITS = {4: 10, 5: 10}


def message(content: RecordDict) -> Message:
    become_server()
    return Message(content, 1, "train.prune")


def test_report_round_trip_and_name():
    assert read_report(message(report_record(REPORT))) == REPORT
    assert REPORT.name == "'north' (partition 3)"
    assert replace(REPORT, site="").name == "partition 3"


@pytest.mark.parametrize("key", ["partition-id", "weights-hash", "problem", "tokens"])
def test_report_refuses_missing_and_mistyped_keys(key):
    content = report_record(REPORT)
    record = content.config_records["report"]
    wrong: bytes | float = 1.5
    record[key] = wrong
    with pytest.raises(ReplyRefusedError, match=f"'{key}' must be (int|str), got float"):
        read_report(message(content))
    del record[key]
    with pytest.raises(ReplyRefusedError, match=f"'{key}'.*NoneType"):
        read_report(message(content))


def test_bool_is_not_a_number_and_no_record_is_refused():
    content = report_record(REPORT)
    content.config_records["report"]["partition-id"] = True
    with pytest.raises(ReplyRefusedError, match="must be int, got bool"):
        read_report(message(content))
    with pytest.raises(ReplyRefusedError, match="no record 'report'"):
        read_report(message(RecordDict()))


def test_request_carries_configuration_and_settings():
    found = message(request("sparsity: 0.5", server_round=2, start=4))
    assert requested(found, "config_yaml", str) == "sparsity: 0.5"
    assert requested(found, "start", int) == 4
    with pytest.raises(ReplyRefusedError, match="'stop' must be int"):
        requested(found, "stop", int)
    with pytest.raises(ReplyRefusedError, match="no record 'config'"):
        requested(message(RecordDict()), "start", int)


def test_prune_reply_round_trip_holds_masks_only():
    content = prune_record(REPLY, MASKS)
    assert read_prune(message(content), range(4, 6), LIMITS, MASKS) == REPLY
    assert set(content) == {"arrays", "metrics"}
    assert {array.dtype for array in content.array_records["arrays"].values()} == {"uint8"}


def test_prune_reply_with_other_blocks_is_refused():
    for blocks in (range(4, 5), range(4, 7), range(3, 5)):
        with pytest.raises(ReplyRefusedError, match="asked for blocks"):
            read_prune(
                message(prune_record(REPLY, MASKS)), blocks, dict.fromkeys(range(9), 10), MASKS
            )


def test_prune_reply_too_large_is_refused_before_it_is_read():
    with pytest.raises(ReplyRefusedError, match="at most 4 bytes, got 5"):
        read_prune(message(prune_record(REPLY, MASKS)), range(4, 6), {4: 4, 5: 4}, MASKS)


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (1,), "fedprune.masks.v2", b"four"),
        Array("uint8", (4,), "numpy.ndarray", b"four"),
        Array("uint8", (5,), "fedprune.masks.v2", b"four"),
    ],
)
def test_prune_reply_in_another_format_is_refused(array):
    content = prune_record(REPLY, MASKS)
    content["arrays"] = ArrayRecord({"block-00004": array})
    with pytest.raises(ReplyRefusedError, match="uint8 arrays of format"):
        read_prune(message(content), range(4, 5), LIMITS, MASKS)


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf"), [1.0]])
def test_prune_reply_with_impossible_figures_is_refused(value):
    content = prune_record(REPLY, MASKS)
    content.metric_records["metrics"]["seconds"] = value
    with pytest.raises(ReplyRefusedError, match="'seconds' must be a finite number"):
        read_prune(message(content), range(4, 6), LIMITS, MASKS)


def test_extra_or_swapped_records_are_refused():
    content = prune_record(REPLY, MASKS)
    content["text"] = ConfigRecord({"a": "b"})
    with pytest.raises(ReplyRefusedError, match="'arrays' and 'metrics', maybe 'signature', only"):
        read_prune(message(content), range(4, 6), LIMITS, MASKS)
    swapped = RecordDict({"arrays": MetricRecord({"a": 1}), "metrics": MetricRecord({"a": 1})})
    with pytest.raises(ReplyRefusedError, match="must be an ArrayRecord"):
        read_prune(message(swapped), range(4, 6), LIMITS, MASKS)


def test_local_result_round_trip_and_refusal():
    assert read_local(message(local_record(LocalResult(2.5, 100)))) == LocalResult(2.5, 100)
    with pytest.raises(ReplyRefusedError, match="record 'metrics'"):
        read_local(message(RecordDict()))
    bad = RecordDict({"metrics": MetricRecord({"nll": float("nan"), "num-tokens": 1})})
    with pytest.raises(ReplyRefusedError, match="'nll'"):
        read_local(message(bad))


def test_message_bytes_counts_payload_and_headers():
    small = message_bytes(message(prune_record(PruneReply({0: b"x"}, 1.0, 0, 0, 1), MASKS)))
    large = message_bytes(
        message(prune_record(PruneReply({0: bytes(12_000_000)}, 1.0, 0, 0, 1), MASKS))
    )
    # Equal chunks are sent once: 12 MB of zeros are two full chunks of 5 MiB, one of them shared.
    assert 300 < small < 2_000
    assert 5 * 2**20 < large < 12_000_000
    distinct = bytes(range(256)) * 40_000 + b"tail"
    assert message_bytes(
        message(prune_record(PruneReply({0: distinct}, 1.0, 0, 0, 1), MASKS))
    ) > len(distinct)


ORDER = Order((2, 3, 7), 1, True, 1 << 20, exchange="prune")


def test_an_order_travels_with_its_bundle_beside_the_configuration():
    plain = message(order_record("a: 1", ORDER))
    more = message(order_record("a: 1", ORDER, {"update": b"u", "start-00002": b"ss"}))
    assert read_bundle(plain) == {}
    assert read_bundle(more) == {"update": b"u", "start-00002": b"ss"}
    assert read_order(plain) == read_order(more) == ORDER
    assert requested(more, "config_yaml", str) == "a: 1"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("blocks", 3, "'blocks' must be a list"),
        ("blocks", [1.5], "'blocks' must be a list"),
        ("blocks", [3, 2], "increasing blocks"),
        ("resume", "1", "'resume' must be int"),
        ("resume", 3, "increasing blocks at or after block 3"),
        ("last", 1, "'last' must be bool"),
        ("segment-bytes", 1, "'segment-bytes' must be at least"),
        ("exchange", True, "'exchange' must be str"),
    ],
)
def test_orders_are_checked(key, value, words):
    content = order_record("a: 1", ORDER)
    content.config_records["order"][key] = value
    with pytest.raises(ReplyRefusedError, match=words):
        read_order(message(content))
    with pytest.raises(ReplyRefusedError, match="no record 'order'"):
        read_order(message(request("a: 1")))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (MetricRecord({"update": 1}), "may hold 'update'"),
        (ArrayRecord({"other": Array("uint8", (1,), BUNDLE_FORMAT, b"x")}), "may hold 'update'"),
        (ArrayRecord({"update": Array("uint8", (2,), BUNDLE_FORMAT, b"x")}), "true length"),
        (ArrayRecord({"update": Array("int8", (1,), BUNDLE_FORMAT, b"x")}), "uint8"),
        (ArrayRecord({"update": Array("uint8", (1,), "numpy.ndarray", b"x")}), BUNDLE_FORMAT),
    ],
)
def test_other_arrays_of_a_request_are_refused(arrays, words):
    content = request("a: 1")
    content["arrays"] = arrays
    with pytest.raises(ReplyRefusedError, match=words):
        read_bundle(message(content))


def test_what_was_delivered_ahead_comes_back_as_it_was():
    assert read_ahead(message(order_record("a: 1", ORDER))) == {}
    ahead = {"update": 5, "start-00002": 7}
    content = order_record("a: 1", ORDER, {}, ahead)
    assert read_ahead(message(content)) == ahead and read_order(message(content)) == ORDER
    for name, size in (("final", 5), ("../update", 5), ("update", 0), ("update", "5")):
        content["ahead"] = ConfigRecord({name: size})
        with pytest.raises(ReplyRefusedError, match="record 'ahead'"):
            read_ahead(message(content))
