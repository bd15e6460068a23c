"""Replies of a deployment: refused as early as can be seen, whatever a node makes of them."""

import json
import logging
import tracemalloc

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ObjectTree

from fedprune.flower.grid import ObjectGrid, object_grid
from fedprune.flower.replies import ExpectedReply, ReplyLimits
from fedprune.records import PruneReply, prune_record
from tests.support.grid import LocalGrid, become_server, client_app, ends_of
from tests.support.superlink import Link, LinkGrid, WireLink, named

NODE = 4711
JOB = "0" * 32
MOST = 100_000


def request() -> Message:
    become_server()
    content = RecordDict({"config": ConfigRecord({"config-yaml": "seed: 0"})})
    message = Message(content, NODE, "train.prune", group_id=JOB, ttl=60)
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def content(size: int = 50) -> RecordDict:
    return prune_record(PruneReply({0: b"x" * size}, 1.0, 1, 0, 1), "fedprune.masks.v2")


def answer(asked: Message, body: RecordDict | Error | None = None, **forged) -> Message:
    """Return a reply as a node's process makes it; ``forged`` is what it lies about."""
    body = body or content()
    reply = Message(body, reply_to=asked)
    for key, value in {"src_node_id": NODE, **forged}.items():
        reply.metadata.__dict__[f"_{key}"] = value
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


@pytest.fixture
def link():
    return Link()


def pulled(link, asked: Message, most: int = MOST, gate: ReplyLimits | None = None):
    grid = object_grid(LinkGrid(link))
    assert isinstance(grid, ObjectGrid)
    return grid.pull_reply(
        ExpectedReply(asked.metadata.message_id, asked.metadata, most), gate or ReplyLimits()
    )


def test_a_reply_arrives_once_with_its_bytes_and_is_deleted(link):
    asked = request()
    objects = link.send(answer(asked))
    grid = object_grid(LinkGrid(link))
    (outcome,) = ends_of(grid, [asked], window=1, timeout=5)
    assert outcome.problem == "" and outcome.reply.content.array_records["arrays"]
    assert outcome.bytes_up == sum(map(len, objects.values()))
    assert link.confirmed == [outcome.reply.metadata.message_id]


def test_a_simulations_grid_stays_as_it_is():
    grid = LocalGrid(client_app(lambda message, context: message), 1)
    assert object_grid(grid) is grid


def test_a_reply_that_is_not_whole_yet_holds_nobody_up(link):
    asked = request()
    objects = link.send(answer(asked))
    missing = list(objects)[0]
    link.objects[missing] = b""
    grid = object_grid(LinkGrid(link))
    told = ExpectedReply(asked.metadata.message_id, asked.metadata, MOST)
    assert grid.pull_reply(told, ReplyLimits()) is None
    assert grid.pull_reply(told, ReplyLimits()) is None
    link.objects |= objects
    assert grid.pull_reply(told, ReplyLimits()).message is not None
    assert len(link.pulled) == len(objects) + 2  # what had come was not asked for again


def test_a_reply_that_never_becomes_whole_ends_with_the_timeout_and_is_deleted(link):
    asked = request()
    objects = link.send(answer(asked))
    link.objects[list(objects)[0]] = b""
    (outcome,) = ends_of(object_grid(LinkGrid(link)), [asked], window=1, timeout=0.1)
    assert "no reply within" in outcome.problem and len(link.confirmed) == 1


def test_objects_that_are_gone_are_an_error_as_flower_has_it(link):
    asked = request()
    objects = link.send(answer(asked))
    del link.objects[list(objects)[0]]
    found = pulled(link, asked)
    assert found.message.has_error() and found.message.error.code == 3


def test_a_tree_of_too_many_names_is_refused_before_anything_is_taken(link):
    asked = request()
    leaves = [ObjectTree(object_id=f"{n:064x}") for n in range(MOST // 60)]
    head = answer(asked)
    link.announce(head, {}, ObjectTree(object_id="f" * 64, children=leaves))
    found = pulled(link, asked)
    assert found.message is None and "more bytes than this model's can have" in found.problem
    assert link.pulled == [] and link.confirmed == ["f" * 64]


def test_taking_stops_where_a_reply_becomes_too_long(link):
    asked = request()
    blocks = {n: bytes([n]) * 1000 for n in range(200)}
    link.send(answer(asked, prune_record(PruneReply(blocks, 1.0, 1, 0, 1), "fedprune.masks.v2")))
    found = pulled(link, asked)
    assert "more bytes" in found.problem and found.size <= MOST + 2000
    assert len(link.pulled) < 250 < len(link.objects)
    assert len(link.confirmed) == 1


def test_a_long_object_is_refused_by_its_announced_length_before_it_is_read():
    link, asked = WireLink(), request()
    link.send(answer(asked, content(5_000_000)))
    found = pulled(link, asked)
    assert "more bytes" in found.problem
    assert link.read < 200_000


def test_http_brings_what_fits():
    link, asked = WireLink(), request()
    link.send(answer(asked, content(50_000)))
    assert pulled(link, asked).message is not None


def test_one_piece_named_a_million_times_does_not_fill_the_memory(link):
    """Flower names pieces of an array by their place in a list, which may repeat one."""
    asked = request()
    chunk_id, chunk = named(b"ArrayChunk  5000\0" + b"x" * 5000)
    places = ",".join(["0"] * 30_000)
    body = json.dumps({"dtype": "uint8", "shape": [1], "stype": "fedprune.masks.v2"}).encode()[:-1]
    body += b', "arraychunk_ids": [' + places.encode() + b"]}"
    array_id, array = named(b"Array %s %d\0" % (chunk_id.encode(), len(body)) + body)
    refs = json.dumps({"block-00000": array_id}).encode()
    arrays_id, arrays = named(b"ArrayRecord %s %d\0" % (array_id.encode(), len(refs)) + refs)
    refs = json.dumps({"arrays": arrays_id}).encode()
    dict_id, records = named(b"RecordDict %s %d\0" % (arrays_id.encode(), len(refs)) + refs)
    honest = answer(asked)
    head = honest.deflate()
    message_id, message = named(head.replace(honest.content.object_id.encode(), dict_id.encode()))
    tree = ObjectTree(object_id=chunk_id)
    for name in (array_id, arrays_id, dict_id, message_id):
        tree = ObjectTree(object_id=name, children=[tree])
    contents = (chunk, array, arrays, records, message)
    link.announce(answer(asked), dict(named(one) for one in contents), tree)
    tracemalloc.start()
    found = pulled(link, asked)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more bytes" in found.problem and peak < 10_000_000
    assert b"\0" in array


@pytest.mark.parametrize(
    ("forged", "what"),
    [
        ({"src_node_id": NODE + 1}, "another node"),
        ({"reply_to_message_id": "e" * 64}, "another request"),
        ({"group_id": "1" * 32}, "another job"),
        ({"run_id": 99}, "another run"),
        ({"message_type": "query.fetch"}, "another kind of message"),
    ],
)
def test_a_reply_whose_own_head_lies_is_refused(link, forged, what):
    """The SuperLink checks the head that comes beside a message, not the message's own."""
    asked = request()
    link.send(answer(asked, **forged), head=answer(asked))
    found = pulled(link, asked)
    assert found.message is None and what in found.problem
    assert len(link.confirmed) == 1


@pytest.mark.parametrize(
    "root",
    [
        b"",
        b"no head at all",
        b"Message  5\0abcde",
        b"ConfigRecord  0\0",
        b"Nonsense  0\0",
        b"Message " + b"a" * 64 + b" 0\0",
        b"Array  2\0{}",
        b"RecordDict  4\0null",
    ],
)
def test_objects_that_make_no_message_are_refused(link, root, caplog):
    asked = request()
    name, root = named(root or b"\0")
    link.announce(answer(asked), {name: root}, ObjectTree(object_id=name))
    with caplog.at_level(logging.DEBUG):
        found = pulled(link, asked)
    assert found.message is None and "its reply" in found.problem
    assert "no head at all" not in found.problem + caplog.text
    assert link.confirmed == [name]


def test_messages_that_answer_nothing_are_counted_and_logged_once(link, caplog):
    """A registered node can put a message into a run that the server never asked for."""
    asked, told = request(), []
    for number in range(3):
        stray = answer(asked, content(number + 1))
        head = answer(asked, src_node_id=1, reply_to_message_id="")
        link.send(stray, head=head)
    link.send(answer(asked))
    grid = object_grid(LinkGrid(link))
    (outcome,) = ends_of(grid, [asked], window=1, timeout=5, gate=ReplyLimits(MOST, told.append))
    assert outcome.reply is not None and told == [3]
    assert len(link.confirmed) == 4
    assert caplog.text.count("answers no request") == 1


def test_a_second_reply_to_a_request_is_a_stray(link):
    asked, gate = request(), ReplyLimits()
    link.send(answer(asked))
    link.send(answer(asked, content(60)))
    assert pulled(link, asked, gate=gate).message is not None
    assert gate._strays == 1


@pytest.mark.parametrize(("code", "taken"), [(0, False), (2, True), (5, False), (8, True)])
def test_a_node_cannot_speak_for_the_superlink(link, code, taken):
    """Code 0 would stop the run as if a worker had died, 5 would make it wait for the node."""
    asked = request()
    link.send(answer(asked, Error(code, "ray says so")))
    found = pulled(link, asked)
    assert (found.message is not None) == taken


def test_the_superlinks_own_words_are_taken(link):
    asked = request()
    reply = answer(asked, Error(5, "gone"), src_node_id=1)
    reply = make_message(reply.metadata, error=reply.error)
    link.send(reply)
    assert pulled(link, asked).message.error.code == 5


def test_replies_inside_a_machine_are_checked_after_receipt():
    def other_job(message, context):
        reply = Message(RecordDict({"m": MetricRecord({"n": 1})}), reply_to=message)
        reply.metadata.__dict__["_group_id"] = "other"
        return reply

    def long(message, context):
        return Message(content(MOST), reply_to=message)

    for handler, words in ((other_job, "another job"), (long, "more bytes")):
        grid = LocalGrid(client_app(handler), 1)
        asked = Message(RecordDict(), 100, "train.prune", group_id=JOB)
        (outcome,) = ends_of(grid, [asked], window=1, timeout=5, gate=ReplyLimits(MOST))
        assert outcome.reply is None and words in outcome.problem


def test_nobody_else_pulls_from_a_guarded_grid(link):
    grid = object_grid(LinkGrid(link))
    with pytest.raises(NotImplementedError):
        grid.pull_messages(["a"])
    with pytest.raises(NotImplementedError):
        grid.send_and_receive([])
