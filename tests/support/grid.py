"""Flower's Grid inside one process: every pushed message runs the real ClientApp at once."""

from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Tamper = Callable[[int, Message], Message | None]


def become_server() -> None:
    """Give the process the identity that Flower's Message constructor asks for."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


class LocalGrid(Grid):
    """A federation of ``nodes`` virtual nodes.

    Parameters
    ----------
    app : ClientApp
        Runs once a message.
    nodes : int
        Number of nodes; node 100 + i holds partition i.
    run_id : int
        Flower's number of the run.
    node_configs : dict, optional
        Partition -> settings that replace the default ones.
    tamper : callable, optional
        (partition, reply) -> what arrives instead; None means that nothing ever arrives.
    """

    def __init__(self, app, nodes, run_id=1, node_configs=None, tamper=None):
        become_server()
        self._app = app
        self._tamper: Tamper = tamper or (lambda partition, reply: reply)
        self._contexts: dict[int, Context] = {}
        for partition in range(nodes):
            default = {"partition-id": partition, "num-partitions": nodes}
            settings = (node_configs or {}).get(partition, default)
            node_id = 100 + partition
            self._contexts[node_id] = Context(run_id, node_id, settings, RecordDict(), {})
        self._replies: dict[str, Message] = {}
        self._count = 0
        self.sent: list[Message] = []

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args, **kwargs) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = []
        for message in messages:
            self._count += 1
            identifier = str(self._count)
            message.metadata.__dict__["_message_id"] = identifier
            self.sent.append(message)
            node_id = message.metadata.dst_node_id
            try:
                reply = self._app(message, self._contexts[node_id])
            except Exception as error:
                reply = Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)
            arrived = self._tamper(node_id - 100, reply)
            if arrived is not None:
                self._replies[identifier] = arrived
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(key) for key in list(message_ids) if key in self._replies]

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("strategies stream: they push and pull, never send_and_receive")


def client_app(handler: Callable[[Message, Context], Message]) -> ClientApp:
    """Return a ClientApp whose every action is ``handler``."""
    app = ClientApp()
    app.query("handshake")(handler)
    app.train("prune")(handler)
    app.evaluate("local")(handler)
    return app
