"""Replies of a deployment are made of objects that strangers may have written."""

import json
from dataclasses import dataclass, field

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from strategies.inlet import Arrived, Asked, checked

_RECORD_BYTES = 4_000_000  # of all objects that are not pieces of arrays: they grow when read
# What a SuperNode says itself; the other codes are the SuperLink's words about it.
_NODES_CODES = (
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.INVALID_FAB,
    ErrorCode.CLIENT_APP_CRASHED,
)


@dataclass
class Arriving:
    """A reply that was announced: its objects' names, the last sent first, and what has come."""

    message_id: str
    from_superlink: bool
    left: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


def gone(asked: Asked) -> Message:
    """Return the error that Flower's own grid makes of a reply whose objects are not there."""
    head = asked.head
    told = Metadata(
        run_id=head.run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=asked.message_id,
        group_id=head.group_id,
        created_at=head.created_at,
        ttl=head.ttl,
        message_type=head.message_type,
    )
    reason = "its reply was not sent whole in time"
    return make_message(told, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


def names_of(tree: ObjectTree) -> list[str]:
    """Return the names of a message's objects, each once, in the order in which they are sent."""
    return list(dict.fromkeys(item.object_id for item in iterate_object_tree(tree)))


def whole(arriving: Arriving, asked: Asked) -> Arrived:
    """Make the message of its objects, which a stranger may have written."""
    size = arriving.size
    try:
        problem = asked.too_long(_expanded(arriving.contents))
        if problem:
            return Arrived(None, problem, size)
        message = inflate_object_from_contents(arriving.message_id, arriving.contents)
        if not isinstance(message, Message):
            return Arrived(None, "its reply is no message.", size)
        message.metadata.__dict__["_message_id"] = arriving.message_id  # as Flower's grid does
        if message.has_error():
            return _checked_error(message, asked, arriving)
        return checked(message, asked, size)
    except Exception as error:  # Flower's parsers raise whatever they stumble over
        return Arrived(None, f"its reply cannot be read ({type(error).__name__}).", size)


def _checked_error(message: Message, asked: Asked, arriving: Arriving) -> Arrived:
    if arriving.from_superlink:
        return Arrived(message, "", arriving.size)
    if message.error.code not in _NODES_CODES:
        return Arrived(None, "its reply is an error that no node has.", arriving.size)
    problem = asked.misfit(message.metadata)
    return Arrived(None if problem else message, problem, arriving.size)


def _expanded(contents: dict[str, bytes]) -> int:
    """Return the bytes that objects will have as arrays, where a piece may be named repeatedly."""
    heads = {name: get_object_head_values_from_object_content(c) for name, c in contents.items()}
    records = sum(len(contents[name]) for name, head in heads.items() if head[0] != "ArrayChunk")
    if records > _RECORD_BYTES:
        raise ValueError("records are longer than any reply's.")
    total = records
    for name, (kind, children, length) in heads.items():
        if kind == "Array":
            body = json.loads(contents[name][-length:]) if length else {}
            total += sum(heads[children[place]][2] for place in body["arraychunk_ids"])
    return total
