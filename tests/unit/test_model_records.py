"""Records that bring a model: read with care on both sides."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedprune.errors import ReplyRefusedError
from fedprune.models.transfer import Manifest, ModelFile
from fedprune.records import (
    ModelSegment,
    held_record,
    manifest_record,
    read_held,
    read_model_segment,
    segment_record,
)
from tests.support.grid import become_server

DIGEST = "ab" * 32


def message(content: RecordDict) -> Message:
    become_server()
    return Message(content, 1, "query.model")


def test_round_trips():
    manifest = Manifest(4096, (ModelFile("config.json", 2, DIGEST, (DIGEST,)),))
    found = read_model_segment(message(manifest_record(manifest)))
    assert found == ModelSegment(manifest.digest, -1, manifest.text)
    found = read_model_segment(message(segment_record(DIGEST, 3, b"data")))
    assert found == ModelSegment(DIGEST, 3, b"data")
    assert read_held(message(held_record(4)), 5) == 4


@pytest.mark.parametrize(
    ("digest", "number"), [("../" + "a" * 61, 0), ("AB" * 32, 0), ("", 0), (DIGEST, -2)]
)
def test_a_segment_of_no_model_is_refused(digest, number):
    with pytest.raises(ReplyRefusedError, match="its manifest, then as numbered segments"):
        read_model_segment(message(segment_record(digest, number, b"")))


def test_a_segment_in_the_manifest_s_place_and_other_records_are_refused():
    content = segment_record(DIGEST, 0, b"data")
    content.config_records["config"]["segment"] = -1
    with pytest.raises(ReplyRefusedError, match="its manifest, then as numbered segments"):
        read_model_segment(message(content))
    with pytest.raises(ReplyRefusedError, match="no record 'config'"):
        read_model_segment(message(RecordDict()))
    content = segment_record(DIGEST, 0, b"data")
    content.array_records["arrays"]["segment"].stype = "other"
    with pytest.raises(ReplyRefusedError, match="uint8 arrays of format 'fedprune.model.v1'"):
        read_model_segment(message(content))


@pytest.mark.parametrize("held", [-1, 6, True, 1.0, "3"])
def test_an_impossible_number_of_segments_is_refused(held):
    with pytest.raises(ReplyRefusedError):
        read_held(message(RecordDict({"model": ConfigRecord({"held": held})})), 5)


def test_an_answer_with_more_in_it_is_refused():
    content = held_record(1)
    content["more"] = ConfigRecord({})
    with pytest.raises(ReplyRefusedError, match="holds the record 'model' only"):
        read_held(message(content), 5)
