"""A model on its way to a node: the manifest first, then segment after segment.

Requests are the same for every node, so that Flower holds the bytes of a segment once for all.
"""

from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.models.transfer import MOST_MANIFEST_BYTES, MOST_SEGMENT_BYTES, Manifest, is_digest
from fedprune.records.fields import array_bytes, byte_array, typed
from fedprune.records.requests import requested

MODEL_FORMAT = "fedprune.model.v1"
_MANIFEST, _SEGMENT = "manifest", "segment"


@dataclass(frozen=True)
class ModelSegment:
    """A part of a model that arrives."""

    digest: str  # SHA-256 of the model's manifest
    number: int  # which segment, from 0; -1 is the manifest itself
    data: bytes


def manifest_record(manifest: Manifest) -> RecordDict:
    """Return the content of the first request: what is to come."""
    return _record(manifest.digest, -1, _MANIFEST, manifest.text)


def segment_record(digest: str, number: int, data: bytes) -> RecordDict:
    """Return the content of a request that brings a segment."""
    return _record(digest, number, _SEGMENT, data)


def read_model_segment(message: Message) -> ModelSegment:
    """Read a request that brings a model.

    Raises ReplyRefusedError if it is malformed or too large.
    """
    digest = str(requested(message, "manifest", str))
    number = int(requested(message, "segment", int))
    name = _SEGMENT if number >= 0 else _MANIFEST
    arrays = message.content.array_records.get("arrays")
    if arrays is None or set(arrays) != {name} or number < -1 or not is_digest(digest):
        raise ReplyRefusedError("a model comes as its manifest, then as numbered segments of it.")
    most = MOST_SEGMENT_BYTES if number >= 0 else MOST_MANIFEST_BYTES
    return ModelSegment(digest, number, array_bytes(arrays[name], MODEL_FORMAT, most))


def held_record(held: int) -> RecordDict:
    """Return the content of a node's answer: how many segments it has, the first ones."""
    return RecordDict({"model": ConfigRecord({"held": held})})


def read_held(message: Message, segments: int) -> int:
    """Return how many of a model's ``segments`` a node has.

    Raises ReplyRefusedError if the answer is malformed.
    """
    record = message.content.config_records.get("model")
    if record is None or set(message.content) != {"model"}:
        raise ReplyRefusedError("an answer to a model's segment holds the record 'model' only.")
    held = int(str(typed(record, "held", int)))
    if not 0 <= held <= segments:
        raise ReplyRefusedError(f"a node can have 0 to {segments} segments, got {held}.")
    return held


def _record(digest: str, number: int, name: str, data: bytes) -> RecordDict:
    return RecordDict(
        {
            "config": ConfigRecord({"manifest": digest, "segment": number}),
            "arrays": ArrayRecord({name: byte_array(data, MODEL_FORMAT)}),
        }
    )
