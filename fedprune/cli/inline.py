"""A simulation inside this process: the real ServerApp and ClientApp without Flower's runtime.

Starts in no time, runs clients one after another and shares one model among them. What the apps
see is what Flower's own simulation shows them: the same records, nodes and settings.
"""

import contextlib
import io
import logging
import secrets
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import FLOWER_LOGGER
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedprune.cli.flower import RunStatus, Scalar
from fedprune.errors import FedpruneError
from fedprune.logs import JsonFormatter, json_wanted

Settings = Mapping[str, str | int | float | bool]
TakeLine = Callable[[str], None]

# Flower's numbers are random and nearly all take nine or ten bytes in a message. These take nine
# and those of nodes are not random, so that a message's size is the same in every run.
_LONG = 2**62
_SUPERLINK_NODE = 1
_CLIENT_APP_RAISED = 2


class InlineGrid(Grid):
    """Flower's Grid inside one process: the ClientApp runs when its reply is pulled.

    So no reply waits for another one to be looked at, and memory does not grow with the clients.

    Parameters
    ----------
    app : ClientApp
        Runs once a message.
    nodes : int
        Number of nodes; node ``first_node + i`` holds partition i.
    run_id : int
        Flower's number of the run.
    first_node : int
        Number of the first node.
    node_configs : Mapping, optional
        Partition -> settings that replace the default ones.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: int,
        run_id: int,
        first_node: int = _LONG,
        node_configs: Mapping[int, Settings] | None = None,
    ) -> None:
        self._app = app
        self._first_node = first_node
        self._waiting: dict[str, Message] = {}
        self._contexts: dict[int, Context] = {}
        for partition in range(nodes):
            default: Settings = {"partition-id": partition, "num-partitions": nodes}
            settings = dict((node_configs or {}).get(partition, default))
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


def run_inline(run_config: Mapping[str, Scalar], clients: int, take: TakeLine) -> RunStatus:
    """Run a job in this process and return how it ended.

    Parameters
    ----------
    run_config : Mapping
        As for the app in Flower's runtime.
    clients : int
        Number of simulated clients.
    take : Callable
        Gets every line that the apps log or print.
    """
    # Here, because they load torch, which a job on Flower's runtime does in other processes.
    from client_app.app import app
    from server_app.job import run_job

    run_id = _LONG + secrets.randbits(62)
    grid = InlineGrid(app, clients, run_id)
    try:
        with _identity(run_id), _output_to(take):
            run_job(grid, run_config, run_id)
    except FedpruneError as error:
        take(f"{type(error).__name__}: {error}")
        return RunStatus("finished:failed", str(error))
    except Exception as error:
        for line in traceback.format_exc().splitlines():
            take(line)
        return RunStatus("finished:failed", f"{type(error).__name__}: {error}")
    return RunStatus("finished:completed")


def _identify(message: Message) -> str:
    """Give a message an id of the length that those in Flower's simulation have."""
    identifier = str(uuid4())
    message.metadata.__dict__["_message_id"] = identifier
    return identifier


@contextlib.contextmanager
def _identity(run_id: int) -> Iterator[None]:
    """Give this process the identity that Flower's Message constructor asks for."""
    names = ("_run_id", "_node_id", "_task_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, _SUPERLINK_NODE, _LONG
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


class _Lines(io.TextIOBase):
    """A text file that hands on whole lines."""

    def __init__(self, take: TakeLine) -> None:
        self._take = take
        self._rest = ""

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str, /) -> int:
        """Hand on the lines that are whole with ``text``."""
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line:
                self._take(line)
        return len(text)


class _LogLines(logging.Handler):
    """Hands on log records as lines that look like Flower's, or in JSON."""

    def __init__(self, take: TakeLine) -> None:
        super().__init__()
        self._take = take
        self._json = json_wanted()
        if self._json:
            self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on one record."""
        text = self.format(record)
        if not self._json:
            text = f"{record.levelname} : {text}"
        elif not record.getMessage().strip():
            return
        for line in text.splitlines():
            self._take(line)


@contextlib.contextmanager
def _output_to(take: TakeLine) -> Iterator[None]:
    """Send to ``take`` what Flower's logger and all printing would put on the screen."""
    handlers, level = FLOWER_LOGGER.handlers[:], FLOWER_LOGGER.level
    propagate = FLOWER_LOGGER.propagate
    printed = _Lines(take)
    FLOWER_LOGGER.handlers[:] = [_LogLines(take)]
    FLOWER_LOGGER.setLevel(logging.INFO)
    FLOWER_LOGGER.propagate = False  # a host program's handlers would show every line once more
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    finally:
        FLOWER_LOGGER.handlers[:] = handlers
        FLOWER_LOGGER.setLevel(level)
        FLOWER_LOGGER.propagate = propagate
