"""The ClientApp: three thin handlers around :mod:`client_app.session`."""

from functools import lru_cache

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app.guard import answer
from client_app.seat import Seat
from client_app.session import evaluate_local, prune, report
from fedprune.config import RunConfig, from_yaml
from fedprune.records import (
    local_record,
    prune_record,
    report_record,
    requested,
    requested_update,
)

app = ClientApp()


# A simulation's process answers many messages of one run: the same text is checked once.
_read = lru_cache(maxsize=4)(from_yaml)


def _config(message: Message) -> RunConfig:
    return _read(str(requested(message, "config_yaml", str)))


@app.query("handshake")
def handshake(message: Message, context: Context) -> Message:
    """Say who this node is, and whether it can take part."""
    return answer(message, lambda: report_record(report(_config(message), Seat.of(context))))


@app.train("prune")
def prune_blocks(message: Message, context: Context) -> Message:
    """Prune the requested blocks on this node's texts and send the masks."""

    def work() -> RecordDict:
        start, stop = requested(message, "start", int), requested(message, "stop", int)
        blocks, update = range(int(start), int(stop)), requested_update(message)
        return prune_record(prune(_config(message), Seat.of(context), blocks, update))

    return answer(message, work)


@app.evaluate("local")
def local(message: Message, context: Context) -> Message:
    """Measure this node's own pruned model; only the number leaves the node."""
    return answer(message, lambda: local_record(evaluate_local(_config(message), Seat.of(context))))
