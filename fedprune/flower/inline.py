"""A federation inside this process: the ClientApp behind a grid, without Flower's runtime.

Flower's only backend of a simulation is Ray, which needs 15 s to start and end and gives each
worker a model of its own. Here a message runs the ClientApp when its reply is pulled, one after
another. What the apps see is what Flower's simulation shows them: the same records, nodes and
settings. Without it: no job of a few seconds, and every test of both apps together would start Ray.
"""

import secrets
from collections.abc import Iterable
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import FLOWER_LOGGER
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedprune.flower.messages import LONG_NUMBER, set_message_id

Settings = dict[str, str | int | float | bool]

_CLIENT_APP_RAISED = 2


class InlineGrid(Grid):
    """Flower's Grid inside one process: the ClientApp runs when its reply is pulled.

    So no reply waits for another one to be looked at, and memory does not grow with the clients.

    `app`: runs once a message. `nodes`: number of nodes; node ``first_node + i`` holds partition i.
    """

    # The nodes' numbers are not random, so that a message's size is the same in every run.
    def __init__(
        self, app: ClientApp, nodes: int, run_id: int, first_node: int = LONG_NUMBER
    ) -> None:
        self._app = app
        self._waiting: dict[str, Message] = {}
        self._contexts: dict[int, Context] = {}
        for partition in range(nodes):
            settings: Settings = {"partition-id": partition, "num-partitions": nodes}
            node_id = first_node + partition
            self._contexts[node_id] = Context(run_id, node_id, settings, RecordDict(), {})

    @property
    def contexts(self) -> list[Context]:
        """The nodes' contexts, in the order of their partitions."""
        return list(self._contexts.values())

    def set_run(self, run: Run) -> None:
        """Refuse: there is no SuperLink that could hold another run."""
        raise NotImplementedError("an inline simulation is one run")

    @property
    def run(self) -> Run:
        """Refuse: there is no SuperLink that knows of runs."""
        raise NotImplementedError("an inline simulation has no SuperLink")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message, as Flower's deprecated function does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes' numbers."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages for the nodes and return the messages' ids."""
        identifiers = []
        for message in messages:
            identifier = _identify(message)
            self._waiting[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def deliver(self, message: Message) -> Message | None:
        """Return a node's reply, None if none ever arrives."""
        try:
            reply = self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            FLOWER_LOGGER.exception("the ClientApp raised")
            code, reason = _CLIENT_APP_RAISED, f"{type(error).__name__}: {error}"
            reply = Message(Error(code, reason), reply_to=message)
        _identify(reply)
        return reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the ClientApp on these messages, each once, and return its replies."""
        waiting = [self._waiting.pop(key) for key in list(message_ids) if key in self._waiting]
        return [reply for message in waiting if (reply := self.deliver(message)) is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return all replies at once."""
        return self.pull_messages(self.push_messages(messages))


def inline_run_id() -> int:
    """Return a number for a run, as long as Flower's."""
    return LONG_NUMBER + secrets.randbits(62)


def _identify(message: Message) -> str:
    """Give a message an id of the length that those in Flower's simulation have."""
    identifier = str(uuid4())
    set_message_id(message, identifier)
    return identifier
