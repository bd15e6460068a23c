"""The inline simulation's Grid for tests, which can lose and change what arrives."""

from collections.abc import Callable

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from fedprune.disk import home
from fedprune.flower.inline import InlineGrid
from fedprune.records.fields import byte_array
from strategies.exchange import Outcome, exchange

Tamper = Callable[[int, Message], Message | None]

_FIRST_NODE = 100


def become_server() -> None:
    """Give the process the identity that Flower's Message constructor asks for."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


class LocalGrid(InlineGrid):
    """A federation of ``nodes`` virtual nodes.

    `app`: runs once a message. `nodes`: number of nodes; node 100 + i holds partition i.
    `node_configs`: partition -> settings that replace the default ones. `tamper`: (partition,
    reply) -> what arrives instead; None means that nothing ever arrives.
    """

    def __init__(self, app, nodes, run_id=1, node_configs=None, tamper=None):
        become_server()
        super().__init__(app, nodes, run_id, _FIRST_NODE)
        for partition, settings in (node_configs or {}).items():
            self._contexts[_FIRST_NODE + partition].node_config = dict(settings)
        self._tamper: Tamper = tamper or (lambda partition, reply: reply)
        self.sent: list[Message] = []

    def deliver(self, message: Message) -> Message | None:
        self.sent.append(message)
        reply = super().deliver(message)
        return self._tamper(message.metadata.dst_node_id - _FIRST_NODE, reply)

    def kept(self) -> list[str]:
        """Return what the nodes keep of the job that the grid worked on last."""
        folder = home() / "nodes" / f"job-{self.sent[-1].metadata.group_id}"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("strategies stream: they push and pull, never send_and_receive")


def ends_of(grid, requests, **options) -> list[Outcome]:
    """Return how the requests of an exchange ended, in that order."""
    found: list[Outcome] = []
    for _ in exchange(grid, requests, ended=found.append, **options):
        pass
    return found


def answering(
    change: Callable[[bytes], bytes], partition: int = 1, form: str = "", block: str = "block"
) -> Tamper:
    """Return what changes a partition's answers about blocks, of formats that have this word."""

    def tamper(own: int, reply: Message) -> Message:
        arrays = reply.content.array_records.get("arrays", {})
        for key in list(arrays) if own == partition else ():
            if key.startswith(block) and form in arrays[key].stype:
                arrays[key] = byte_array(change(bytes(arrays[key].data)), arrays[key].stype)
        return reply

    return tamper


def garbled(block: str) -> Tamper:
    """Return what changes the last byte of partition 1's answer about a block."""
    return answering(lambda data: data[:-1] + b"\xff", block=block)


class TwiceGrid(LocalGrid):
    """Hands every reply out a second time."""

    def pull_messages(self, message_ids):
        found = list(super().pull_messages(message_ids))
        return [*found, *found]


def client_app(handler: Callable[[Message, Context], Message]) -> ClientApp:
    """Return a ClientApp whose every action is ``handler``."""
    app = ClientApp()
    app.query("handshake")(handler)
    app.query("forget")(lambda message, context: Message(RecordDict(), reply_to=message))
    app.train("prune")(handler)
    app.evaluate("local")(handler)
    return app


def echo(message: Message, context: Context) -> Message:
    """Answer with the number of the partition."""
    number = context.node_config["partition-id"]
    return Message(RecordDict({"metrics": MetricRecord({"n": number})}), reply_to=message)
