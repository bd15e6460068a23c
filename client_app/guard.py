"""Turn a handler's exceptions into error replies that say what to do and quote no private text."""

import logging
import os
from collections.abc import Callable

from flwr.app import Error, Message, RecordDict

from fedprune.errors import FedpruneError

# Flower's code for "the ClientApp raised".
_RAISED = 2
_log = logging.getLogger("flwr")


def answer(message: Message, work: Callable[[], RecordDict]) -> Message:
    """Return the reply that ``work`` makes, or an error reply.

    Our own errors are written to be read by the other side. Any other exception may quote what it
    choked on, so only its type travels, with the system's words for its number where it has one,
    and the rest stays in this node's log.
    """
    try:
        content = work()
    except FedpruneError as error:
        return Message(Error(_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
    except Exception as error:
        _log.exception("the request failed on this node")
        reason = f"{type(error).__name__}{_cause(error)} on the node; its own log has the details"
        return Message(Error(_RAISED, reason), reply_to=message)
    return Message(content, reply_to=message)


def _cause(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return f" ({os.strerror(number)})" if number else ""
