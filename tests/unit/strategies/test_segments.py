"""Replies in segments: put together again, or refused with what is wrong."""

import pytest
from flwr.app import Message

from fedprune.errors import ReplyRefusedError
from fedprune.records import (
    PruneReply,
    fetched_record,
    prune_record,
    read_prune,
    read_sizes,
    split_record,
)
from strategies.messages import SegmentJoiner
from tests.support.grid import become_server

WEIGHTS = "fedprune.weights.v2"

BLOCKS = {3: b"abcde", 4: b"fghijkl"}
DATA = b"".join(BLOCKS.values())
SIZE = 5


def message(content) -> Message:
    become_server()
    return Message(content, 7, "train.prune")


def first(sizes=None, data=DATA):
    content = prune_record(PruneReply({}, 2.0, 3, 4, 5), WEIGHTS)
    split_record(content, data[:SIZE], sizes or {b: len(d) for b, d in BLOCKS.items()}, WEIGHTS)
    return content


def joiner(most=100):
    asked = []

    def fetch(node_id, number):
        asked.append((node_id, number))
        return message(fetched_record(b"", WEIGHTS))

    return SegmentJoiner(WEIGHTS, SIZE, most, fetch), asked


def test_segments_become_one_ordinary_reply():
    join, asked = joiner()
    assert isinstance(join.take(7, message(first())), Message)
    assert isinstance(join.take(7, message(fetched_record(DATA[5:10], WEIGHTS))), Message)
    whole = message(fetched_record(DATA[10:], WEIGHTS))
    assert join.take(7, whole) is None
    assert asked == [(7, 1), (7, 2)]
    reply = read_prune(whole, [3, 4], {3: 5, 4: 7}, WEIGHTS)
    assert reply == PruneReply(BLOCKS, 2.0, 3, 4, 5)


def test_a_whole_reply_stays_as_it_is():
    join, asked = joiner()
    whole = message(prune_record(PruneReply(BLOCKS, 1.0, 0, 0, 1), WEIGHTS))
    assert join.take(7, whole) is None and not asked
    assert read_prune(whole, [3, 4], {3: 5, 4: 7}, WEIGHTS).blocks == BLOCKS


def test_of_a_reply_that_does_not_become_whole_nothing_is_kept():
    join, _ = joiner()
    join.take(7, message(first()))
    assert join.take(7, None) is None and not join._collected


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (fetched_record(b"toolong", WEIGHTS), "at most 5 bytes, got 7"),
        (fetched_record(b"cut", WEIGHTS), "this segment has 5 bytes, got 3"),
        (fetched_record(DATA[5:10], "other"), "format 'fedprune.weights.v2'"),
        (prune_record(PruneReply(BLOCKS, 1.0, 0, 0, 1), WEIGHTS), "one array, 'segment'"),
    ],
)
def test_a_wrong_segment_refuses_the_reply(second, words):
    join, _ = joiner()
    join.take(7, message(first()))
    with pytest.raises(ReplyRefusedError, match=words):
        join.take(7, message(second))
    assert not join._collected


def test_more_than_the_model_can_have_is_refused_before_it_is_fetched():
    join, asked = joiner(most=11)
    with pytest.raises(ReplyRefusedError, match="can have 11 bytes at most, it announces 12"):
        join.take(7, message(first()))
    assert not asked


@pytest.mark.parametrize(
    "lists",
    [
        {"blocks": [1], "sizes": [1, 2]},
        {"blocks": [1], "sizes": [0]},
        {"blocks": [-1], "sizes": [1]},
        {"blocks": [1], "sizes": [1.5]},
        {"blocks": 1, "sizes": 1},
    ],
)
def test_malformed_lists_of_segments_are_refused(lists):
    content = first()
    for key, value in lists.items():
        content.config_records["segments"][key] = value
    with pytest.raises(ReplyRefusedError, match="'segments' must list"):
        read_sizes(message(content))
