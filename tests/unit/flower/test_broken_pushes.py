"""A SuperLink may die after it has stored a part of a request and before it has said so."""

import pytest
from flwr.app import Message
from flwr.proto.message_pb2 import PushObjectResponse
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from fedprune.flower.grid import object_grid
from fedprune.records import PruneReply, prune_record
from tests.support.grid import become_server
from tests.support.linkstate import BreakingLink
from tests.support.superlink import LinkedGrid


def request(link: BreakingLink) -> Message:
    become_server()
    content = prune_record(
        PruneReply({n: bytes([n]) * 5000 for n in range(4)}, 1.0, 1, 0, 1), "fedprune.masks.v2"
    )
    message = Message(content, link.node_id, "train.prune", group_id="0" * 32, ttl=60)
    message.metadata.__dict__["_run_id"] = link.run_id
    return message


@pytest.mark.parametrize("breaks", [0, 1, 3])
def test_a_request_reaches_its_node_once_and_whole(tmp_path, breaks):
    link = BreakingLink(tmp_path / "state.db", breaks)
    asked = request(link)
    (identifier,) = object_grid(LinkedGrid(link, link.run_id)).push_messages([asked])
    (received,) = link.handed_out()
    assert identifier == asked.object_id == received.object_id
    assert received.content == asked.content
    assert link.handed_out() == []


def test_flowers_own_grid_gives_up(tmp_path):
    """If this fails, Flower takes an object twice by now, and sending anew can go."""
    link = BreakingLink(tmp_path / "state.db", 1)
    with pytest.raises(ObjectPushError):
        LinkedGrid(link, link.run_id).push_messages([request(link)])


class DeafLink(BreakingLink):
    """A SuperLink that takes no object at all."""

    def PushObject(self, request):
        return PushObjectResponse(stored=False)


def test_a_superlink_that_never_takes_a_request_is_not_asked_for_ever(tmp_path):
    link = DeafLink(tmp_path / "state.db", 0)
    with pytest.raises(ObjectPushError):
        object_grid(LinkedGrid(link, link.run_id)).push_messages([request(link)])
