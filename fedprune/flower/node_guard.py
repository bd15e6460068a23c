"""What a site's SuperNode checks that Flower's does not: the app, whole replies, lost messages.

Flower's SuperNode runs whatever app the server sends, sends a reply while it is still being written
and waits for ever if that breaks off, and goes on when a message was lost on the way. We put a
guard around the two halves of its main loop: an app that the site does not allow is refused before
any of it is kept; each request gets a whole reply or an error, also when the process that works on
it was ended or hangs; and a lost message ends the SuperNode, which starts again. Without it: the
server decides what code runs beside private data, and waits for hours for what will never come.
"""

import hashlib
import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from logging import INFO, WARNING
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import httpx
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.common.logger import log
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.task_pb2 import Task
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStore
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeState

from fedprune.errors import FedpruneError

P = ParamSpec("P")
R = TypeVar("R")

_POLL_SECONDS = 0.1
_UNFINISHED = (Status.PENDING, Status.STARTING, Status.RUNNING)
_ENDED = Error(
    ErrorCode.CLIENT_APP_CRASHED, "The process that worked on the request ended without a reply."
)
_HOOKS = {
    "_pull_and_store_message": (
        "state",
        "object_store",
        "receive",
        "get_run",
        "get_fab",
        "pull_object",
        "confirm_message_received",
    ),
    "_push_messages": ("state", "object_store", "send", "push_object"),
    "_insert_message": ("msg", "state", "store"),
}


class LostMessageError(FedpruneError):
    """A message to or from this node was lost on the way and nobody will send it again."""


class AppRefusedError(FedpruneError):
    """The app that a run brings is none that this site runs."""


def install(guard: "NodeGuard", module: ModuleType = start_client_internal) -> None:
    """Put a guard into Flower's SuperNode of this process.

    Raises FedpruneError if this Flower's SuperNode is not built as expected.
    """
    for name, parameters in _HOOKS.items():
        found = getattr(module, name, None)
        known = inspect.signature(found).parameters if found else {}
        missing = [parameter for parameter in parameters if parameter not in known]
        if not found or missing:
            what = f"'{name}' without {', '.join(missing)}" if found else f"no '{name}'"
            raise FedpruneError(
                "The SuperNode cannot check apps: the installed Flower is built otherwise than "
                f"1.41 (its '{module.__name__}' has {what}). Install flwr>=1.41.0,<1.42, or run "
                "`flower-supernode` itself, which runs any app."
            )
    module._pull_and_store_message = partial(  # type: ignore[attr-defined]
        guard.pull, module._pull_and_store_message
    )
    module._push_messages = partial(  # type: ignore[attr-defined]
        guard.push, module._push_messages
    )


class NodeGuard:
    """Stands around the two halves of the SuperNode's main loop.

    `allowed`: SHA-256 of the apps that may run here; None lets any run.
    """

    def __init__(self, allowed: frozenset[str] | None) -> None:
        self._allowed = allowed
        self._refused: dict[str, int] = {}
        self._message: Message | None = None
        self._due = 0.0
        for digest in sorted(allowed or ()):
            log(INFO, "This site runs the app %s", digest)

    def pull(self, original: Callable[..., int | None], **given: Any) -> int | None:
        """Take a message in Flower's way; answer for those whose app is not allowed.

        Returns the message's run, None if there was no message. Raises LostMessageError if the
        message could not be taken although the SuperLink has handed it out.
        """
        self._message = None
        failures: list[Exception] = []
        watched = {
            name: _watched(given[name], failures)
            for name in ("pull_object", "confirm_message_received")
        }
        own = {
            "receive": partial(self._receive, given["receive"]),
            "get_fab": partial(self._checked, given["get_fab"]),
        }
        try:
            run_id = original(**{**given, **watched, **own})
        except AppRefusedError as refusal:
            return self._answer(
                Error(ErrorCode.INVALID_FAB, str(refusal)), given["state"], given["object_store"]
            )
        _raise_if_lost(failures)
        return run_id

    def push(self, original: Callable[..., None], **given: Any) -> None:
        """Send the reply in Flower's way, once the process that made it has ended.

        Flower sends while the reply still comes in and waits for ever if that breaks off, or if
        there is none.

        Raises LostMessageError if the reply could not be sent.
        """
        state, store = given["state"], given["object_store"]
        replies = self._replies(state, store)
        failures: list[Exception] = []
        watched = {name: _watched(given[name], failures) for name in ("send", "push_object")}
        original(**{**given, **watched, "state": _WithReplies(state, replies)})
        _raise_if_lost(failures)

    def _receive(
        self, receive: Callable[[], tuple[Message, ObjectTree] | None]
    ) -> tuple[Message, ObjectTree] | None:
        received = receive()
        if received is not None:
            self._message = received[0]
            # Counted from here: the clock of the server, which sets the time, may be another.
            self._due = time.monotonic() + received[0].metadata.ttl
        return received

    def _checked(self, get_fab: Callable[[str, int], Fab], fab_hash: str, run_id: int) -> Fab:
        fab = get_fab(fab_hash, run_id)
        digest = hashlib.sha256(fab.content).hexdigest()
        if self._allowed is not None and (
            digest not in self._allowed or {fab.hash_str, fab_hash} != {digest}
        ):
            raise AppRefusedError(self._refusal(digest))
        return fab

    def _refusal(self, digest: str) -> str:
        count = self._refused[digest] = self._refused.get(digest, 0) + 1
        known = ", ".join(sorted(self._allowed or ()))
        text = (
            f"this site does not run the app {digest}, only {known}. Install the same "
            "release on both sides, compare `fedprune supernode --print-app` here and there, or "
            "let the site allow it with `fedprune supernode --app`."
        )
        if count == 1:
            log(WARNING, "Refused: %s Further requests of it are only counted.", text)
        elif count in (10, 100, 1000) or count % 10000 == 0:
            log(WARNING, "Refused the app %s %d times so far.", digest, count)
        return text

    def _answer(self, error: Error, state: NodeState, store: ObjectStore) -> int:
        if self._message is None:
            raise RuntimeError("There is no message to answer.")
        reply = Message(error, reply_to=self._message)
        start_client_internal._insert_message(reply, state, store)
        return self._message.metadata.run_id

    def _replies(self, state: NodeState, store: ObjectStore) -> Sequence[Message]:
        """Wait until no process works on the run any more, and return whole replies.

        A process may hang and still be heard of: it is waited for while its server does.
        """
        if self._message is None:
            raise RuntimeError("There is no message to answer.")
        run_id = self._message.metadata.run_id
        # Asking also ends tasks whose process has not been heard of for a minute.
        while tasks := state.get_tasks(run_ids=[run_id], statuses=_UNFINISHED):
            if time.monotonic() > self._due:
                self._give_up(tasks, self._message, state, store)
                break
            time.sleep(_POLL_SECONDS)
        whole = []
        for reply in state.get_messages_legacy(is_reply=True):
            if _is_whole(reply, store):
                whole.append(reply)
            else:
                state.delete_messages(message_ids=[reply.metadata.message_id])
                store.delete(reply.metadata.message_id)
        if not whole:
            log(WARNING, "%s The server is told so.", _ENDED.reason)
            self._answer(_ENDED, state, store)
            return state.get_messages_legacy(is_reply=True)
        return whole

    def _give_up(
        self, tasks: Sequence[Task], request: Message, state: NodeState, store: ObjectStore
    ) -> None:
        """Finish tasks, whose processes learn of it with their next sign of life and end."""
        log(
            WARNING,
            "The process that works on a request has not ended within the %g s that the server "
            "waits: it is given up. If it goes on, end it.",
            request.metadata.ttl,
        )
        for task in tasks:
            state.finish_task(task.task_id, SubStatus.FAILED, "The request's time is over.")
        # The next process would take it if this one has not.
        state.delete_messages(message_ids=[request.metadata.message_id])
        store.delete(request.metadata.message_id)


class _WithReplies:
    """A node's state that hands out replies which have been taken from it already."""

    def __init__(self, state: NodeState, replies: Sequence[Message]) -> None:
        self._state = state
        self._taken = replies

    def get_messages_legacy(self, *, is_reply: bool) -> Sequence[Message]:
        """Return the replies."""
        return self._taken if is_reply else self._state.get_messages_legacy(is_reply=False)

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the state."""
        return getattr(self._state, name)


def _is_whole(reply: Message, store: ObjectStore) -> bool:
    tree = store.get_object_tree(reply.metadata.message_id)
    return all(store.get(node.object_id) for node in iterate_object_tree(tree))


def _watched(call: Callable[P, R], failures: list[Exception]) -> Callable[P, R]:
    """Return a call whose failures are noted besides: on the network, or of a part not taken.

    A SuperLink that has died meanwhile does not take what it no longer waits for.
    """

    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (httpx.HTTPError, ObjectPushError) as error:
            failures.append(error)
            raise

    return called


def _raise_if_lost(failures: Sequence[Exception]) -> None:
    if failures:
        raise LostMessageError(
            f"A message was lost on the way: {failures[0]}. The SuperNode must start again so "
            "that the server learns of it."
        )
