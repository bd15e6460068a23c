"""Sizes, ids and senders of Flower's messages outside its runtime.

Flower gives a message its id and its process the numbers of run, node and task, both in attributes
of its own; a message's constructor refuses to work without them, and nothing public tells how many
bytes a message has. We set and read them here. Without it: no test and no inline simulation could
make a message, and the ledger would hold guesses.
"""

import contextlib
from collections.abc import Iterator

from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

# Flower's numbers are random and nearly all take nine or ten bytes in a message. This takes nine.
LONG_NUMBER = 2**62

_SUPERLINK_NODE = 1


def message_bytes(message: Message) -> int:
    """Return the size of a message as Flower serialises it, headers included."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(message).values())


def content_bytes(content: RecordDict) -> int:
    """Return the size of a message's content as Flower serialises it."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(content).values())


def set_message_id(message: Message, identifier: str) -> None:
    """Give a message the id that Flower's runtime would have given it."""
    message.metadata.__dict__["_message_id"] = identifier


@contextlib.contextmanager
def process_identity(run_id: int) -> Iterator[None]:
    """Let this process make messages as the ServerApp of a run, and be what it was afterwards."""
    names = ("_run_id", "_node_id", "_task_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.run_id, TaskIdentity.node_id = run_id, _SUPERLINK_NODE
    TaskIdentity.task_id = LONG_NUMBER
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)
