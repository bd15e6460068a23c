"""Turn a handler's exceptions into error replies that say what to do and quote no private text."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Error, Message

from client_app.approval import daily_limit
from client_app.ledger import DailyLimitError, LedgerError, Sent, append
from client_app.node import payloads
from client_app.node_config import NodeConfig
from fedprune.config import RunConfig, from_yaml
from fedprune.config.schema import PrivacyConfig
from fedprune.errors import ConfigError, FedpruneError
from fedprune.flower.messages import content_bytes
from fedprune.logs import bound, job_mark, log_failure
from fedprune.records import requested
from fedprune.results.environment import source_digest

# Flower's code for "the ClientApp raised".
_RAISED = 2
_log = logging.getLogger("flwr")
# Answers made of texts, which masks and noise protect; others are figures and keys.
_OF_TEXTS = ("train.prune", "query.fetch")


def guarded(
    message: Message, context: Context, handle: Callable[[Message, Context], Message]
) -> Message:
    """Return what a handler answers, or an error reply, after it is in the site's ledger.

    A mod of Flower's, around every handler of the app.
    """
    told = message.metadata
    with bound(role="client", run=told.run_id, job=job_mark(told.group_id)):
        try:
            reply = handle(message, context)
        except Exception as error:
            reply = Message(Error(_RAISED, _reason(told.message_type, error)), reply_to=message)
        return _refusal(message, context, reply) or reply


def _reason(request: str, error: Exception) -> str:
    """Return what the other side is told of an exception, and log what happened.

    Our own errors are written to be read by the other side, but for what they keep to this node's
    log. Any other exception may quote what it choked on: only its type travels, with the system's
    words for its number where it has one. This node's log also says where it came from.
    """
    kind = type(error).__name__
    if isinstance(error, FedpruneError):
        _log.info("%s is answered with %s: %s", request, kind, error)
        return f"{kind}: {error.outside}"
    log_failure(f"{request} failed on this node", error)
    number = error.errno if isinstance(error, OSError) else None
    cause = f" ({os.strerror(number)})" if number else ""
    return f"{kind}{cause} on the node; its own log has the details"


def _refusal(message: Message, context: Context, reply: Message) -> Message | None:
    """Put a reply into the operator's ledger, if there is one; return what goes in its place."""
    path = context.node_config.get("ledger")
    if not isinstance(path, str) or not path:
        return None
    ledger = Path(path).expanduser()
    text, config = _asked(message)
    try:
        most = None
        if config is not None and not reply.has_error():
            most = daily_limit(config, NodeConfig.read(dict(context.node_config)))
        append(ledger, _sent(message, reply, text, config), most)
    except LedgerError as error:
        _log.error("%s", error)
        return Message(Error(_RAISED, f"LedgerError: {error.outside}"), reply_to=message)
    except (DailyLimitError, ConfigError) as error:
        _log.info("%s is not answered: %s", message.metadata.message_type, error)
        told = Error(_RAISED, f"{type(error).__name__}: {error.outside}")
        refusal = Message(told, reply_to=message)
        return _refusal(message, context, refusal) or refusal
    return None


def _asked(message: Message) -> tuple[str, RunConfig | None]:
    """Return the configuration that a request brings; some bring none, one that is wrong is None.

    Its text is "" where there is none.
    """
    text = ""
    with contextlib.suppress(FedpruneError):
        text = str(requested(message, "config_yaml", str))
        return text, read_configuration(text)
    return text, None


def _sent(message: Message, reply: Message, text: str, config: RunConfig | None) -> Sent:
    told = message.metadata
    error = reply.error.reason or "" if reply.has_error() else ""
    size, digest = (
        (len(error.encode()), hashlib.sha256(error.encode()).hexdigest())
        if reply.has_error()
        else (content_bytes(reply.content), reply.content.object_id)
    )
    privacy = _privacy(told.message_type, reply, config)
    return Sent(
        told.message_type,
        str(told.run_id),
        told.group_id,
        source_digest(),
        hashlib.sha256(text.encode()).hexdigest() if text else "",
        "" if config is None else config.strategy.name,
        "" if config is None else ",".join(sorted(payloads(config))),
        size,
        digest,
        error,
        masked=privacy is not None and privacy.secure,
        eps=0.0 if privacy is None else float(privacy.epsilon or 0),
    )


def _privacy(request: str, reply: Message, config: RunConfig | None) -> PrivacyConfig | None:
    """Return what protects an answer that is made of texts; None for all others."""
    made_of_texts = request in _OF_TEXTS and not reply.has_error()
    return config.privacy if config is not None and made_of_texts else None


# A simulation's process answers many messages of one run: the same text is checked once.
read_configuration = lru_cache(maxsize=4)(from_yaml)
