"""The guard of a site's SuperNode, around Flower's own main loop and state."""

import hashlib
import types

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from fedprune.errors import FedpruneError
from fedprune.flower import node_guard
from fedprune.flower.node_guard import LostMessageError, NodeGuard, install
from tests.support.grid import become_server

PROJECT = """
[project]
name = "tiny"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "tiny:server"
clientapp = "tiny:client"
[tool.flwr.app.config]
"""
RUN = 5


def app(text: str) -> Fab:
    content, _ = build_fab_from_files(
        {"pyproject.toml": PROJECT.encode(), "tiny.py": text.encode()}
    )
    return Fab(hashlib.sha256(content).hexdigest(), content, {})


OURS, OTHER = app("client = server = 1\n"), app("client = server = 2\n")
ORIGINALS = {
    name: getattr(start_client_internal, name)
    for name in ("_pull_and_store_message", "_push_messages")
}


class Site:
    """A node's state, a guard around Flower's functions, and a server that hands out a message."""

    def __init__(self, fab: Fab, guard: NodeGuard) -> None:
        become_server()
        self.store = ObjectStoreFactory().store()
        factory = ObjectStoreFactory()
        self.store = factory.store()
        self.state = NodeStateFactory(objectstore_factory=factory).state()
        self.state.set_node_id(7)
        self.fab = fab
        self.guard = guard
        self.sent: list[Message] = []
        self.failure: BaseException | None = None
        self.refused_part = False
        self.ask()

    def ask(self, seconds: float = 3600.0) -> None:
        """Have the server ask for something that it waits so long for."""
        content = RecordDict({"config": ConfigRecord({"a": 1})})
        message = Message(content, 7, "query", ttl=seconds, group_id="g")
        message.metadata.__dict__["_run_id"] = RUN
        message.metadata.__dict__["_message_id"] = message.object_id
        self.request = message
        self.objects = {k: v.deflate() for k, v in get_all_nested_objects(message).items()}

    def pull(self, announced: str = "") -> int | None:
        run = Run.create_empty(RUN)
        run.fab_hash = announced or self.fab.hash_str
        light = remove_content_from_message(self.request)
        return self.guard.pull(
            ORIGINALS["_pull_and_store_message"],
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (light, get_object_tree(self.request)),
            get_run=lambda run_id: run,
            get_fab=lambda fab_hash, run_id: self.fab,
            pull_object=self._pull_object,
            confirm_message_received=lambda run_id, message_id: None,
            trusted_entities=None,
        )

    def push(self) -> Message:
        self.guard.push(
            ORIGINALS["_push_messages"],
            state=self.state,
            object_store=self.store,
            send=self._send,
            push_object=self._push_object,
        )
        return self.sent[-1]

    def answer(self, whole: bool = True) -> None:
        """Do what the process of a ClientApp does."""
        [request] = self.state.get_messages_legacy(is_reply=False)
        reply = Message(RecordDict({"c": ConfigRecord({"b": 2})}), reply_to=self.request)
        if whole:
            start_client_internal._insert_message(reply, self.state, self.store)
            return
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.state.store_message(reply)
        self.store.preregister(RUN, get_object_tree(reply))

    def finish(self, sub_status: str = SubStatus.COMPLETED) -> None:
        for task in self.state.get_tasks(run_ids=[RUN]):
            self.state.claim_task(task.task_id)
            self.state.activate_task(task_id=task.task_id)
            self.state.finish_task(task.task_id, sub_status, "")

    def _pull_object(self, run_id: int, object_id: str) -> bytes:
        if self.failure:
            raise self.failure
        return self.objects[object_id]

    def _send(self, message: Message, *others: object) -> tuple[set[str], str]:
        if self.failure:
            raise self.failure
        self.sent.append(message)
        return {message.metadata.message_id}, "session"

    def _push_object(self, run_id: int, session_id: str, object_id: str, content: bytes) -> None:
        if self.refused_part:
            raise ObjectPushError(object_id, run_id, session_id)


def server_error() -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://superlink/v1/fleet/push-messages")
    return httpx.HTTPStatusError("500", request=request, response=httpx.Response(500))


def test_an_app_that_is_not_allowed_is_refused_before_any_of_it_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site(OTHER, NodeGuard(frozenset({OURS.hash_str})))
    for _ in range(10):
        assert site.pull() == RUN
        assert site.state.get_run(RUN) is None
        assert site.state.get_fab(OTHER.hash_str) is None
        assert not site.state.get_tasks(run_ids=[RUN])
        error = site.push().error
        assert error.code == ErrorCode.INVALID_FAB
        assert OTHER.hash_str in error.reason and OURS.hash_str in error.reason
        assert "--print-app" in error.reason
    said = [line for line in caplog.messages if "efused" in line]
    assert len(said) == 2
    assert "only counted" in said[0] and "10 times" in said[1]


@pytest.mark.parametrize(
    ("fab", "allowed"),
    [
        (OURS, {OURS.hash_str}),
        (OTHER, {OURS.hash_str, OTHER.hash_str}),
        (OTHER, None),
    ],
)
def test_an_allowed_app_is_handed_on(fab: Fab, allowed: set[str] | None) -> None:
    site = Site(fab, NodeGuard(frozenset(allowed) if allowed else None))
    assert site.pull() == RUN
    assert site.state.get_fab(fab.hash_str).content == fab.content
    [task] = site.state.get_tasks(run_ids=[RUN])
    assert task.type == TaskType.CLIENT_APP
    site.answer()
    site.finish()
    assert site.push().content["c"]["b"] == 2


@pytest.mark.parametrize("announced", ["", OURS.hash_str])
def test_the_content_counts_whatever_the_server_calls_it(announced: str) -> None:
    site = Site(Fab(OURS.hash_str, OTHER.content, {}), NodeGuard(frozenset({OURS.hash_str})))
    assert site.pull(announced) == RUN
    assert site.push().error.code == ErrorCode.INVALID_FAB
    site = Site(OURS, NodeGuard(frozenset({OURS.hash_str})))
    assert site.pull(OTHER.hash_str) == RUN
    assert site.push().error.code == ErrorCode.INVALID_FAB


@pytest.mark.parametrize("half", [False, True])
def test_a_process_that_ends_without_a_whole_reply_is_answered_for(half: bool) -> None:
    """Flower's own loop waits for ever in either case."""
    site = Site(OURS, NodeGuard(None))
    site.pull()
    if half:
        site.answer(whole=False)
    site.finish(SubStatus.FAILED)
    error = site.push().error
    assert error.code == ErrorCode.CLIENT_APP_CRASHED
    assert "without a reply" in error.reason
    assert len(site.sent) == 1
    site.pull()
    site.answer()
    site.finish()
    assert site.push().content["c"]["b"] == 2


@pytest.mark.parametrize("taken", [False, True])
def test_a_process_that_hangs_does_not_block_the_site(taken: bool, caplog) -> None:
    """It goes on giving signs of life, so Flower's own loop waits for it for ever."""
    site = Site(OURS, NodeGuard(None))
    site.ask(seconds=0.2)
    site.pull()
    [task] = site.state.get_tasks(run_ids=[RUN])
    site.state.claim_task(task.task_id)
    site.state.activate_task(task_id=task.task_id)
    if taken:
        site.state.get_messages_legacy(is_reply=False)
    assert site.push().error.code == ErrorCode.CLIENT_APP_CRASHED
    assert "is given up" in caplog.text
    [ended] = site.state.get_tasks(run_ids=[RUN])
    assert ended.status.sub_status == SubStatus.FAILED
    assert not site.state.acknowledge_task_heartbeat(task.task_id)
    assert not site.state.get_messages_legacy(is_reply=False)
    site.ask()
    site.pull()
    site.answer()
    site.finish()
    assert site.push().content["c"]["b"] == 2


def test_a_whole_reply_of_a_process_that_hangs_afterwards_is_sent() -> None:
    site = Site(OURS, NodeGuard(None))
    site.ask(seconds=0.2)
    site.pull()
    site.answer()
    assert site.push().content["c"]["b"] == 2


def test_a_reply_that_cannot_be_sent_ends_the_main_loop() -> None:
    site = Site(OURS, NodeGuard(None))
    site.pull()
    site.answer()
    site.finish()
    site.failure = server_error()
    with pytest.raises(LostMessageError, match=r"lost.*500"):
        site.push()


def test_a_reply_of_which_a_part_is_not_taken_ends_the_main_loop() -> None:
    """As by a SuperLink that has died meanwhile; Flower only logs it, and its server waits."""
    site = Site(OURS, NodeGuard(None))
    site.pull()
    site.answer()
    site.finish()
    site.refused_part = True
    with pytest.raises(LostMessageError, match="lost"):
        site.push()


def test_a_request_that_cannot_be_fetched_ends_the_main_loop() -> None:
    site = Site(OURS, NodeGuard(None))
    site.failure = server_error()
    with pytest.raises(LostMessageError):
        site.pull()


@pytest.mark.parametrize("when", ["pull", "push"])
def test_a_run_that_has_ended_meanwhile_loses_nothing(when: str) -> None:
    site = Site(OURS, NodeGuard(None))
    if when == "pull":
        site.failure = RunNotRunningException()
        assert site.pull() is None
        return
    site.pull()
    site.answer()
    site.finish()
    site.failure = RunNotRunningException()
    site.guard.push(
        ORIGINALS["_push_messages"],
        state=site.state,
        object_store=site.store,
        send=site._send,
        push_object=lambda *arguments: None,
    )
    assert not site.sent


def test_no_message_is_no_message() -> None:
    guard = NodeGuard(frozenset())
    nothing = dict.fromkeys(node_guard._HOOKS["_pull_and_store_message"], lambda: None)
    own = {"node_config": {}, "trusted_entities": None}
    assert guard.pull(ORIGINALS["_pull_and_store_message"], **nothing, **own) is None


def test_takes_its_place_in_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, original in ORIGINALS.items():
        monkeypatch.setattr(start_client_internal, name, original)
    install(NodeGuard(None))
    for name, original in ORIGINALS.items():
        placed = getattr(start_client_internal, name)
        assert placed is not original and placed.args == (original,)


def test_another_flower_is_refused() -> None:
    def _push_messages(state, object_store, push_object): ...

    module = types.ModuleType("flwr.supernode.other")
    with pytest.raises(FedpruneError, match=r"no '_pull_and_store_message'.*flwr>=1.41.0,<1.42"):
        install(NodeGuard(None), module)
    module._pull_and_store_message = ORIGINALS["_pull_and_store_message"]
    module._push_messages = _push_messages
    with pytest.raises(FedpruneError, match="'_push_messages' without send"):
        install(NodeGuard(None), module)
