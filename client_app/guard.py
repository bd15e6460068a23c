"""Turn a handler's exceptions into error replies that say what to do and quote no private text."""

import logging
import os
from collections.abc import Callable

from flwr.app import Error, Message, RecordDict

from fedprune.errors import FedpruneError
from fedprune.logs import bound, job_mark, log_failure

# Flower's code for "the ClientApp raised".
_RAISED = 2
_log = logging.getLogger("flwr")


def answer(message: Message, work: Callable[[], RecordDict]) -> Message:
    """Return the reply that ``work`` makes, or an error reply.

    Our own errors are written to be read by the other side, but for what they keep to this node's
    log. Any other exception may quote what it choked on: only its type travels, with the system's
    words for its number where it has one. This node's log also says where it came from.
    """
    told = message.metadata
    with bound(role="client", run=told.run_id, job=job_mark(told.group_id)):
        return _answer(message, work)


def _answer(message: Message, work: Callable[[], RecordDict]) -> Message:
    try:
        content = work()
    except FedpruneError as error:
        kind = type(error).__name__
        _log.info("%s is answered with %s: %s", message.metadata.message_type, kind, error)
        return Message(Error(_RAISED, f"{kind}: {error.outside}"), reply_to=message)
    except Exception as error:
        log_failure(f"{message.metadata.message_type} failed on this node", error)
        reason = f"{type(error).__name__}{_cause(error)} on the node; its own log has the details"
        return Message(Error(_RAISED, reason), reply_to=message)
    return Message(content, reply_to=message)


def _cause(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return f" ({os.strerror(number)})" if number else ""
