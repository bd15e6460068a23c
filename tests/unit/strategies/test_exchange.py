import pytest
from flwr.app import Error, Message, RecordDict

from fedprune.flower.replies import ReplyLimits
from fedprune.records import message_bytes
from strategies.exchange import Again, WorkerDiedError, exchange
from tests.support.grid import LocalGrid, TwiceGrid, client_app, echo, ends_of


def requests(grid: LocalGrid):
    for node_id in grid.get_node_ids():
        yield Message(RecordDict(), node_id, "train.prune")


class Watcher(LocalGrid):
    """Counts how many requests are out at once."""

    most = 0

    def push_messages(self, messages):
        pushed = super().push_messages(messages)
        self.most = max(self.most, len(self._waiting))
        return pushed


def test_every_request_has_one_outcome_with_its_bytes():
    grid = LocalGrid(client_app(echo), 5)
    outcomes = ends_of(grid, requests(grid), window=2, timeout=5)
    assert sorted(outcome.node_id for outcome in outcomes) == [100, 101, 102, 103, 104]
    for outcome in outcomes:
        assert outcome.problem == ""
        assert outcome.bytes_up == message_bytes(outcome.reply)
        assert outcome.bytes_down > 100


@pytest.mark.parametrize("window", [1, 3, 50])
def test_at_most_window_requests_are_out(window):
    grid = Watcher(client_app(echo), 9)
    assert len(ends_of(grid, requests(grid), window=window, timeout=5)) == 9
    assert grid.most == min(window, 9)


def test_silent_node_ends_with_a_reason_and_does_not_hold_up_others():
    grid = LocalGrid(client_app(echo), 3, tamper=lambda p, reply: None if p == 1 else reply)
    outcomes = {o.node_id: o for o in ends_of(grid, requests(grid), window=1, timeout=0.1)}
    assert "no reply within 0.1 s (`strategy.timeout`)" in outcomes[101].problem
    assert outcomes[100].reply is not None and outcomes[102].reply is not None


def test_failed_node_is_told_with_its_last_line():
    def fail(message, context):
        raise ValueError("first\nthe cause")

    grid = LocalGrid(client_app(fail), 1)
    (outcome,) = ends_of(grid, requests(grid), window=1, timeout=5)
    assert outcome.reply is None
    assert "the cause" in outcome.problem and "error 2" in outcome.problem


def test_dead_worker_stops_the_run():
    def died(partition, reply):
        reason = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died'>"
        return Message(Error(0, reason), reply_to=grid.sent[-1])

    grid = LocalGrid(client_app(echo), 2, tamper=died)
    with pytest.raises(WorkerDiedError, match="ran out of memory"):
        ends_of(grid, requests(grid), window=1, timeout=5)


def test_node_that_left_before_the_push():
    class Gone(LocalGrid):
        def push_messages(self, messages):
            return []

    grid = Gone(client_app(echo), 1)
    (outcome,) = ends_of(grid, requests(grid), window=1, timeout=5)
    assert "left before" in outcome.problem


def crash_once(code: int = 8):
    """Replace the first reply of node 101 by what Flower says of a process that died."""
    gone: list[int] = []

    def tamper(partition: int, reply: Message) -> Message:
        if partition != 1 or gone:
            return reply
        gone.append(partition)
        return Message(Error(code, "the app exited"), reply_to=reply)

    return tamper


def again(node_id: int) -> Message:
    return Message(RecordDict(), node_id, "train.prune")


def test_a_node_whose_process_dies_is_asked_once_more():
    grid = LocalGrid(client_app(echo), 3, tamper=crash_once())
    outcomes = ends_of(grid, requests(grid), window=2, timeout=5, again=Again(again))
    assert sorted(o.node_id for o in outcomes) == [100, 101, 102]
    assert all(o.reply is not None for o in outcomes)
    assert len(grid.sent) == 4


@pytest.mark.parametrize("code", [2, 5])
def test_other_failures_are_not_tried_again(code):
    grid = LocalGrid(client_app(echo), 3, tamper=crash_once(code))
    outcomes = {
        o.node_id: o for o in ends_of(grid, requests(grid), window=2, timeout=5, again=Again(again))
    }
    assert outcomes[101].reply is None and len(grid.sent) == 3


def test_a_process_that_dies_twice_is_given_up():
    def always(partition: int, reply: Message) -> Message:
        return Message(Error(8, "the app exited"), reply_to=reply) if partition == 1 else reply

    grid = LocalGrid(client_app(echo), 3, tamper=always)
    outcomes = {
        o.node_id: o for o in ends_of(grid, requests(grid), window=3, timeout=5, again=Again(again))
    }
    assert "Flower error 8" in outcomes[101].problem and len(grid.sent) == 4


@pytest.mark.parametrize("end", ["normal", "closed", "raised"])
def test_messages_that_nobody_asked_for_are_told_however_it_ends(end):
    def died(partition, reply):
        reason = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died'>"
        failed = end == "raised" and partition == 1
        return Message(Error(0, reason), reply_to=grid.sent[-1]) if failed else reply

    grid, told = TwiceGrid(client_app(echo), 2, tamper=died), []
    found = exchange(
        grid, requests(grid), window=1, timeout=5, gate=ReplyLimits(on_strays=told.append)
    )
    next(found)
    assert told == []
    if end == "normal":
        assert len(list(found)) == 1
    elif end == "closed":
        found.close()
    else:
        with pytest.raises(WorkerDiedError):
            next(found)
    assert told == [1 if end == "closed" else 2]
