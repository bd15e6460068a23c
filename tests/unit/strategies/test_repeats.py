import time
from collections.abc import Iterable

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from fedprune.records import message_bytes
from strategies.exchange import Again, Outcome
from tests.support.grid import LocalGrid, client_app, echo, ends_of

KIND = "train.prune"
LOST = 101


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("strategies.exchange._LOOK_SECONDS", 0.01)
    monkeypatch.setattr("strategies.exchange._FRESH_SECONDS", 0.0)
    monkeypatch.setattr("strategies.exchange._RECONNECT_LOOK_SECONDS", 0.0)


class Losing(LocalGrid):
    """Node 101 is lost at its first requests, and away for so many looks."""

    def __init__(self, times: int, looks: int = 2, code: int = 5) -> None:
        super().__init__(client_app(echo), 3)
        self.times, self.looks, self.code = times, looks, code
        self._away = 0

    def deliver(self, message: Message) -> Message | None:
        reply = super().deliver(message)
        if message.metadata.dst_node_id != LOST or not self.times:
            return reply
        self.times -= 1
        self._away = self.looks
        return Message(Error(self.code, "gone"), reply_to=message)

    def get_node_ids(self) -> Iterable[int]:
        self._away = max(0, self._away - 1)
        return [node for node in super().get_node_ids() if node != LOST or not self._away]


def ask(grid: LocalGrid, rejoin: float = 5.0, timeout: float = 5.0, **more) -> list[Outcome]:
    requests = (
        Message(RecordDict(), node, KIND, ttl=60.0, group_id="job") for node in range(100, 103)
    )
    again = Again(rejoin=rejoin, **more)
    return ends_of(grid, requests, window=3, timeout=timeout, again=again)


def numbers(outcomes: list[Outcome]) -> dict[int, object]:
    return {o.node_id: o.reply and o.reply.content["metrics"]["n"] for o in outcomes}


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_lost_node_that_comes_back_is_asked_once_more(times, caplog):
    grid = Losing(times)
    outcomes = ask(grid, name={LOST: "site-b"}.get)
    assert numbers(outcomes) == {100: 0, 101: 1, 102: 2}
    assert [o.node_id for o in outcomes][-1] == LOST
    assert len(grid.sent) == 3 + times
    assert len({id(message) for message in grid.sent}) == 3 + times
    assert (
        caplog.text.count("site-b is lost: it failed: gone (Flower error 5); it has 5 s") == times
    )
    assert caplog.text.count("site-b is back after 0 s; it is asked once more") == times


def test_the_bytes_of_each_try_are_counted():
    grid = Losing(2)
    lost = ask(grid)[-1]
    tries = [m for m in grid.sent if m.metadata.dst_node_id == LOST]
    assert lost.bytes_down == sum(map(message_bytes, tries))
    assert lost.bytes_up > message_bytes(lost.reply)


def test_who_does_not_come_back_is_given_up_and_holds_up_nobody():
    outcomes = ask(Losing(1, looks=10**9), rejoin=0.2)
    assert [o.node_id for o in outcomes][-1] == LOST
    assert "did not come back within 0.2 s (`strategy.rejoin`)" in outcomes[-1].problem
    assert "Flower error 5" in outcomes[-1].problem
    assert numbers(outcomes) == {100: 0, 101: None, 102: 2}


def test_who_is_lost_again_and_again_is_given_up():
    grid = Losing(10**9)
    assert ask(grid)[-1].reply is None
    assert len([m for m in grid.sent if m.metadata.dst_node_id == LOST]) == 6


def test_without_patience_a_lost_node_is_given_up_at_once():
    grid = Losing(1)
    assert numbers(ask(grid, rejoin=0.0)) == {100: 0, 101: None, 102: 2}
    assert len(grid.sent) == 3


def test_a_node_that_left_before_the_push_may_come_back():
    class Leaving(Losing):
        refused = 1

        def push_messages(self, messages):
            (message,) = messages
            if message.metadata.dst_node_id == LOST and self.refused:
                self.refused -= 1
                return [""]
            return super().push_messages([message])

    assert numbers(ask(Leaving(0))) == {100: 0, 101: 1, 102: 2}


@pytest.mark.parametrize(("timeout", "sent"), [(5.0, 4), (0.001, 3)])
def test_a_reply_that_is_gone_early_was_lost_on_its_way(monkeypatch, timeout, sent):
    grid = Losing(1, code=3)
    if timeout < 1:  # as if its message had expired
        deliver = grid.deliver
        grid.deliver = lambda message: (time.sleep(0.01), deliver(message))[1]
    outcomes = ask(grid, timeout=timeout)
    assert len(outcomes) == 3 and len(grid.sent) == sent


class Restarting(LocalGrid):
    """Node 101 forgets its first request and connects anew before anybody looks."""

    def __init__(self) -> None:
        super().__init__(client_app(echo), 3)
        self._forgets, self._lives = True, 1

    def deliver(self, message: Message) -> Message | None:
        reply = super().deliver(message)
        if message.metadata.dst_node_id == LOST and self._forgets:
            self._forgets, self._lives = False, 2
            return None
        return reply

    def get_nodes(self):
        for node in self.get_node_ids():
            life = self._lives if node == LOST else 1
            yield NodeInfo(node_id=node, last_activated_at=f"2026-01-0{life}")


def test_a_node_that_restarted_unseen_is_asked_once_more():
    grid = Restarting()
    assert numbers(ask(grid)) == {100: 0, 101: 1, 102: 2}
    assert len(grid.sent) == 4


class Late(LocalGrid):
    """The first request is answered only after its time-out."""

    def __init__(self) -> None:
        super().__init__(client_app(echo), 3)
        self.held: dict[str, Message] = {}

    def push_messages(self, messages):
        (key,) = super().push_messages(messages)
        if not self.held:
            self.held[key] = self._waiting.pop(key)
        return [key]


def test_a_late_reply_is_nobody_s():
    def request():
        yield Message(RecordDict(), LOST, KIND)

    grid = Late()
    (first,) = ends_of(grid, request(), window=1, timeout=0.05)
    assert "no reply within" in first.problem
    grid._waiting |= grid.held
    (second,) = ends_of(grid, request(), window=1, timeout=5)
    assert second.reply is not None
    assert second.reply.metadata.reply_to_message_id not in grid.held
    assert set(grid._waiting) == set(grid.held)
