"""Every reader of Flower's records, whatever the other side puts into them."""

from dataclasses import asdict, replace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

from client_app.app import app
from client_app.node import NodeContext
from fedprune.config import RunConfig, config_from_overrides, from_yaml, to_yaml
from fedprune.errors import ConfigError, FedpruneError, ReplyRefusedError, WireError
from fedprune.evaluation.own_texts import OwnTextResult
from fedprune.flower.grid import object_grid
from fedprune.flower.replies import ExpectedReply, ReplyLimits
from fedprune.models.transfer import Manifest, ModelFile
from fedprune.records import (
    FinalOrder,
    LocalResult,
    NodeReport,
    Order,
    PruneReply,
    fetched_record,
    final_record,
    held_record,
    local_record,
    manifest_record,
    order_record,
    own_text_record,
    prune_record,
    read_ahead,
    read_bundle,
    read_final,
    read_held,
    read_local,
    read_model_segment,
    read_order,
    read_own_text,
    read_prune,
    read_report,
    read_segment,
    read_sizes,
    report_record,
    request,
    requested,
    segment_record,
    shown,
    split_record,
)
from strategies.messages import SegmentJoiner
from tests.support.fuzzing import anything, changed, fuzzed, survives
from tests.support.grid import become_server
from tests.support.superlink import Link, LinkGrid, named

MASKS = "fedprune.masks.v2"

REPORT = NodeReport(3, 8, "north", "c" * 64, "w" * 64, "s" * 64, 2, 256, "cpu", 1 << 34, "v", "")
YAML = to_yaml(config_from_overrides([]))
ORDER = Order((1, 2), 1, False, 1 << 20)
MANIFEST = Manifest(1 << 12, (ModelFile("model.safetensors", 5, "a" * 64, ("b" * 64,)),))
SPLIT = prune_record(PruneReply({}, 1.0, 1, 0, 1), MASKS)
split_record(SPLIT, b"abcde", {0: 5, 1: 7}, "fedprune.masks.v2")

VALID = {
    "report": report_record(REPORT),
    "prune": prune_record(PruneReply({1: b"one", 2: b"two"}, 1.0, 1, 0, 1), MASKS),
    "split": SPLIT,
    "segment": fetched_record(b"fghij", "fedprune.masks.v2"),
    "local": local_record(LocalResult(2.0, 10, {"wikitext": 3.0})),
    "own text": own_text_record(OwnTextResult(2.0, 2.5, 10)),
    "order": order_record(YAML, ORDER, {"update": b"xyz"}, {"start-00001": 5}),
    "final": final_record(YAML, FinalOrder({0: 5, 1: 7}, 8, b"abcd")),
    "deliver": request(YAML, {"segment": b"abc"}, name="update", start=3),
    "manifest": manifest_record(MANIFEST),
    "model": segment_record(MANIFEST.digest, 0, b"abcde"),
    "held": held_record(1),
}
READERS = {
    "report": read_report,
    "prune": lambda message: read_prune(message, (1, 2), {1: 10, 2: 10}, "fedprune.masks.v2"),
    "sizes": read_sizes,
    "segment": lambda message: read_segment(message, "fedprune.masks.v2", 5),
    "local": read_local,
    "own text": read_own_text,
    "order": read_order,
    "ahead": read_ahead,
    "final": read_final,
    "bundle": read_bundle,
    "number": lambda message: requested(message, "start", int),
    "model": read_model_segment,
    "held": lambda message: read_held(message, 3),
    "text": lambda message: requested(message, "config_yaml", str),
}

TEXT = st.text(max_size=40) | st.sampled_from(["", "\x1b[31mred", "a\nb", "‮", "x" * 5_000])
NUMBER = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, 2**31, 2**62, 2**63 - 1])
FLOAT = st.floats() | st.sampled_from([float("nan"), float("inf"), -0.0])
SCALAR = NUMBER | FLOAT | TEXT | st.booleans() | st.binary(max_size=40)
LISTS = st.lists(NUMBER, max_size=9) | st.lists(FLOAT, max_size=3) | st.lists(TEXT, max_size=3)
SETTING = SCALAR | LISTS
KEYS = sorted({key for one in VALID.values() for part in one.values() for key in part}) + [
    "nll-of-\x1b[2J",
    "start-99999",
    "other",
]
NAMES = st.sampled_from([*sorted({name for one in VALID.values() for name in one}), "ahead", "odd"])
ARRAY = st.builds(
    Array,
    st.sampled_from(["uint8", "float32", "O", "\x1b[2J"]),
    st.lists(st.integers(0, 2**40), max_size=3).map(tuple) | st.just((5,)),
    st.sampled_from(["fedprune.masks.v2", "fedprune.changes.v2", "numpy.ndarray", "\x1b[2J"]),
    st.binary(max_size=50) | st.just(b"fghij"),
)
KEY = st.sampled_from(KEYS) | TEXT
RECORD = st.one_of(
    st.dictionaries(KEY, SETTING, max_size=5).map(ConfigRecord),
    st.dictionaries(KEY, NUMBER | FLOAT, max_size=5).map(MetricRecord),
    st.dictionaries(KEY, ARRAY, max_size=3).map(ArrayRecord),
)


def copied(content: RecordDict) -> RecordDict:
    return RecordDict({name: type(part)(dict(part)) for name, part in content.items()})


@st.composite
def contents(draw) -> RecordDict:
    """Draw a message's records: a valid one's with a few changes, or arbitrary ones."""
    content = copied(draw(st.sampled_from(list(VALID.values()))))
    if draw(st.integers(0, 3)) == 0:
        content = RecordDict({})
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(content)) | NAMES) if content else draw(NAMES)
        part = content.get(name)
        if part is None or draw(st.integers(0, 4)) == 0:
            content[name] = draw(RECORD)
            continue
        key = draw(st.sampled_from(sorted(part)) | KEY) if part else draw(KEY)
        values = {ConfigRecord: SETTING, MetricRecord: NUMBER | FLOAT, ArrayRecord: ARRAY}
        if draw(st.booleans()) or key not in part:
            part[key] = draw(values[type(part)])
        else:
            del part[key]
    return content


def message(content: RecordDict, kind: str = "train.prune") -> Message:
    become_server()
    return Message(content, 7, kind, group_id="0" * 32)


def harmless(text: str) -> bool:
    return text.isprintable() and len(text) <= 1_000


@pytest.mark.parametrize("name", READERS)
@given(content=contents())
@fuzzed
def test_no_records_do_harm(name, content):
    found = survives(lambda: READERS[name](message(content)), (ReplyRefusedError,), 100_000)
    if isinstance(found, NodeReport):
        assert all(harmless(value) for value in asdict(found).values() if isinstance(value, str))
        assert 0 <= found.partition_id < 2**31 and found.tokens >= 0
        assert harmless(found.name)
    if isinstance(found, LocalResult):
        assert all(harmless(label) for label in found.others)
        assert all(0 <= nll < 2**62 for nll in (found.nll, *found.others.values()))
    if isinstance(found, Order):
        assert list(found.blocks) == sorted(set(found.blocks)) and found.blocks[0] >= found.resume


@given(st.lists(contents(), min_size=1, max_size=4))
@fuzzed
def test_no_segments_do_harm(replies):
    joiner = SegmentJoiner(
        "fedprune.masks.v2", 5, 100, lambda node, number: message(VALID["order"])
    )
    for content in replies:
        reply = message(content)

        def problem(one=reply) -> str:
            try:
                joiner.take(7, one)
            except ReplyRefusedError as error:
                return str(error)
            return ""

        assert harmless(survives(problem, (), 100_000))


@given(TEXT, st.integers(1, 50))
@fuzzed
def test_what_others_wrote_is_shown_on_one_short_line(text, most):
    found = shown(text, most)
    assert found.isprintable() and len(found) <= most
    if text.isprintable() and text.strip() == text and len(text) <= most:
        assert found == text


@given(st.data())
@fuzzed
def test_no_configuration_does_harm(data):
    text = data.draw(anything([YAML.encode()])).decode("utf-8", "replace")
    found = survives(lambda: from_yaml(text), (ConfigError,), len(text) * 50)
    if found is not None:
        assert isinstance(found, RunConfig) and from_yaml(to_yaml(found)) == found


@given(st.data())
@fuzzed
def test_no_manifest_of_a_model_does_harm(data):
    text = data.draw(anything([MANIFEST.text]))
    found = survives(lambda: Manifest.read(text), (WireError,), len(text))
    if found is not None:
        assert Manifest.read(found.text) == found and found.size > 0
        assert all("/" not in file.name and ".." not in file.name for file in found.files)


def test_short_texts_that_would_become_long_ones_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError):
        survives(lambda: from_yaml("\n".join(lines)), (), 1_000)


@given(TEXT | st.from_regex(r"[0-9a-f]{31,33}\Z"), st.dictionaries(st.just("partition-id"), SCALAR))
@fuzzed
def test_no_job_and_no_setting_leads_out_of_a_nodes_folder(job, settings):
    asked = make_message(
        replace_head(message(RecordDict()), _group_id=job).metadata, content=RecordDict()
    )
    node = survives(
        lambda: NodeContext.of(asked, Context(1, 7, settings, RecordDict(), {})),
        (FedpruneError,),
        10_000,
    )
    if node is not None:
        assert node.scratch.parent.name == f"job-{job}" and len(job) == 32


def replace_head(one: Message, **values) -> Message:
    one.metadata.__dict__.update(values)
    return one


KINDS = (
    "query.handshake",
    "query.model",
    "train.prune",
    "query.fetch",
    "query.deliver",
    "evaluate.federated",
)


@given(st.data())
@fuzzed
def test_no_request_stops_a_node(data):
    """A node answers whatever it is asked with a reply or an error that quotes nothing."""
    content = copied(data.draw(contents()))
    if "config" in content.config_records:  # not what else it asks for: models, corpora
        content.config_records["config"]["config-yaml"] = data.draw(TEXT)
    asked = message(content, data.draw(st.sampled_from(KINDS)))
    asked.metadata.__dict__["_message_id"] = "asked"
    context = Context(1, 7, {"partition-id": 0}, RecordDict(), {})
    reply = survives(lambda: app(asked, context), (), 1_000_000)
    assert reply.has_error() and "Error" in reply.error.reason


def objects_of(asked: Message) -> list[bytes]:
    reply = Message(VALID["prune"], reply_to=asked)
    reply.metadata.__dict__["_src_node_id"] = 7
    return [one.deflate() for one in get_all_nested_objects(reply).values()]


@given(st.data())
@fuzzed
def test_no_objects_stop_the_server(data):
    """A node can register any objects as its reply; names follow from contents."""
    asked = replace_head(message(RecordDict()), _message_id="a" * 64)
    valid = objects_of(asked)
    objects = [data.draw(changed(valid)) if data.draw(st.booleans()) else one for one in valid]
    head = Message(RecordDict(), reply_to=asked)
    head.metadata.__dict__["_src_node_id"] = 7
    names = [named(one)[0] for one in objects]
    # What is named in an object may be there under the name that it had before it was changed.
    store = dict(zip(names, objects, strict=True))
    store |= {named(one)[0]: two for one, two in zip(valid, objects, strict=True)}
    link = Link()
    leaves = [ObjectTree(object_id=name) for name in store if name != names[-1]]
    link.announce(head, store, ObjectTree(object_id=names[-1], children=leaves))
    grid, told = object_grid(LinkGrid(link)), ExpectedReply("a" * 64, asked.metadata, 100_000)
    arrived = survives(lambda: grid.pull_reply(told, ReplyLimits()), (), 200_000)
    assert (arrived.message is None) == bool(arrived.problem)
    if arrived.message is not None and arrived.message.has_content():
        for reader in READERS.values():
            survives(lambda read=reader: read(arrived.message), (ReplyRefusedError,), 200_000)


def test_a_report_with_escapes_is_refused_or_made_harmless():
    for key in ("site", "device"):
        with pytest.raises(ReplyRefusedError, match=f"'{key}' must be at most 64 printable"):
            read_report(message(report_record(replace(REPORT, **{key: "a\x1b[2Jb"}))))
    found = read_report(message(report_record(replace(REPORT, problem="one\ntwo\x1b[2J"))))
    assert found.problem == "one | two\\x1b[2J"
