"""Flower's own records of a SuperLink, on a connection that breaks where a test wants it to."""

from types import SimpleNamespace

from flwr.app import Message
from flwr.server.superlink.linkstate.linkstate_factory import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store.object_store_factory import ObjectStoreFactory
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.superlink.servicer.runtime import runtime_handlers


class BreakingLink:
    """A SuperLink whose answers to pushed objects get lost, so that they are pushed again.

    `breaks`: how many answers get lost, from the first on. `run_id`, `node_id`: a run, and a node
    that is online.
    """

    def __init__(self, database, breaks: int):
        manager, path = NoOpFederationManager(), str(database)
        factory = LinkStateFactory(path, manager, ObjectStoreFactory(path))
        self.state = factory.state()
        self.node_id = self.state.create_node("owner", "owner", b"key", 30)
        self.state.activate_node(self.node_id, 30)
        self.run_id = self.state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, "owner", TaskType.SERVER_APP
        )
        self._task = SimpleNamespace(run_id=self.run_id)
        self._breaks = breaks

    def PushMessages(self, request):
        return runtime_handlers.push_messages(request, self.state, self._task)

    def PushObject(self, request):
        answer = runtime_handlers.push_object(request, self.state, self._task)
        if answer.stored and self._breaks:
            self._breaks -= 1
            return runtime_handlers.push_object(request, self.state, self._task)
        return answer

    def handed_out(self) -> list[Message]:
        """Return the messages that the node gets now."""
        return [self._whole(head) for head in self.state.get_message_ins(self.node_id, None)]

    def _whole(self, head: Message) -> Message:
        store, name = self.state.object_store, head.metadata.message_id
        names = [item.object_id for item in iterate_object_tree(store.get_object_tree(name))]
        return inflate_object_from_contents(name, {one: store.get(one) for one in names})
