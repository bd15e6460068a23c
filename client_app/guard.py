"""Turn a handler's exceptions into error replies that say what to do and quote no private text."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict

from client_app.ledger import LedgerError, Sent, append
from client_app.node import payloads
from fedprune.config import from_yaml
from fedprune.errors import FedpruneError
from fedprune.flower.messages import content_bytes
from fedprune.logs import bound, job_mark, log_failure
from fedprune.records import requested
from fedprune.results.environment import source_digest

# Flower's code for "the ClientApp raised".
_RAISED = 2
_log = logging.getLogger("flwr")


def answer(message: Message, context: Context, work: Callable[[], RecordDict]) -> Message:
    """Return the reply that ``work`` makes, or an error reply, after it is in the site's ledger.

    Our own errors are written to be read by the other side, but for what they keep to this node's
    log. Any other exception may quote what it choked on: only its type travels, with the system's
    words for its number where it has one. This node's log also says where it came from.
    """
    told = message.metadata
    with bound(role="client", run=told.run_id, job=job_mark(told.group_id)):
        return _recorded(message, context, _answer(message, work))


def _recorded(message: Message, context: Context, reply: Message) -> Message:
    """Return a reply once the operator's ledger has it; without a ledger at once."""
    path = context.node_config.get("ledger")
    if not isinstance(path, str) or not path:
        return reply
    try:
        append(Path(path).expanduser(), _sent(message, reply))
    except LedgerError as error:
        _log.error("%s", error)
        return Message(Error(_RAISED, f"LedgerError: {error.outside}"), reply_to=message)
    return reply


def _sent(message: Message, reply: Message) -> Sent:
    told, configuration, strategy, sends = message.metadata, "", "", ""
    with contextlib.suppress(
        FedpruneError
    ):  # some requests bring none, one that is wrong is refused
        text = str(requested(message, "config_yaml", str))
        configuration = hashlib.sha256(text.encode()).hexdigest()
        config = read_configuration(text)
        strategy, sends = config.strategy.name, ",".join(sorted(payloads(config)))
    error = reply.error.reason or "" if reply.has_error() else ""
    size, digest = (
        (len(error.encode()), hashlib.sha256(error.encode()).hexdigest())
        if reply.has_error()
        else (content_bytes(reply.content), reply.content.object_id)
    )
    return Sent(
        told.message_type,
        str(told.run_id),
        told.group_id,
        source_digest(),
        configuration,
        strategy,
        sends,
        size,
        digest,
        error,
    )


# A simulation's process answers many messages of one run: the same text is checked once.
read_configuration = lru_cache(maxsize=4)(from_yaml)


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
