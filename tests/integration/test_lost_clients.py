"""A client that is lost or crashes at any of its requests does not change the masks."""

import math
from collections.abc import Iterable

import pytest
from flwr.app import Error, Message

from client_app.app import app
from tests.support.grid import LocalGrid
from tests.support.jobs import job, masks_of, opt_folder, same_masks, small_messages

pytestmark = pytest.mark.usefixtures("three_blocks")

LOST = 101
ALL = ("strategy.min_clients=3", "data.partition=iid")
JOBS = {
    "iterative": ("schedule=iterative",),
    "chunks": ("schedule.blocks_per_message=1", "allocation=owl", "evaluation.local_only=true"),
    "rounds": ("strategy=fedspallm", "strategy.rounds=2", "evaluation.federated=true"),
}
PHASES = {
    "iterative": {"query.handshake", "train.prune"},
    "chunks": {"query.handshake", "train.prune", "evaluate.local"},
    "rounds": {
        "query.handshake",
        "train.prune",
        "query.fetch",
        "query.deliver",
        "evaluate.federated",
    },
}


class Losing(LocalGrid):
    """Node 101 is lost at each of its requests, by turns before and after it has done the work."""

    def __init__(self, times: int, only: str = "", looks: float = 2) -> None:
        super().__init__(app, 3)
        self.lost: dict[str, int] = {}
        self._times, self._only, self._looks, self._away = times, only, looks, 0.0

    def deliver(self, message: Message) -> Message | None:
        kind = message.metadata.message_type
        seen = len(self.sent)
        content = message.content.config_records
        key = f"{kind} {content.get('order')} {content.get('config')}"
        hit = message.metadata.dst_node_id == LOST and kind != "query.forget"
        if not hit or self._only not in kind or self.lost.get(key, 0) == self._times:
            return super().deliver(message)
        self.lost[key] = self.lost.get(key, 0) + 1
        if seen % 2:
            super().deliver(message)
        self._away = self._looks  # so often nobody finds it, whoever looks
        return Message(Error(5, "the node is gone"), reply_to=message)

    def get_node_ids(self) -> Iterable[int]:
        self._away = max(0.0, self._away - 1)
        return [node for node in super().get_node_ids() if node != LOST or not self._away]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("strategies.exchange._LOOK_SECONDS", 0.01)
    small_messages(monkeypatch, 1 << 18)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opt_folder(tmp_path_factory.mktemp("model") / "opt")


@pytest.mark.parametrize(("name", "times"), [("iterative", 1), ("chunks", 2), ("rounds", 1)])
def test_it_comes_back_and_the_masks_are_the_same(tmp_path, model, name, times):
    options = (*ALL, *JOBS[name])
    if name != "rounds":  # the demo is large enough for segments
        options = (*options, f"model={model}")
    undisturbed = job(tmp_path / "undisturbed", *options)
    grid = Losing(times)
    results = job(tmp_path / "run", *options, grid=grid)
    assert {key.split()[0] for key in grid.lost} == PHASES[name]
    assert set(grid.lost.values()) == {times}
    assert not results["ledger"]["refused"]
    assert same_masks(masks_of(tmp_path / "run"), masks_of(tmp_path / "undisturbed"))
    assert results["perplexity"] == undisturbed["perplexity"]
    assert results["ledger"]["bytes_down"] > undisturbed["ledger"]["bytes_down"]


def test_one_that_is_lost_for_good_is_left_out(tmp_path, model):
    options = ("strategy.min_clients=2", "strategy.rejoin=0.1", *JOBS["chunks"], f"model={model}")
    grid = Losing(1, "train.prune", looks=math.inf)
    results = job(tmp_path / "run", *options, grid=grid)
    assert results["ledger"]["refused"] == {"partition 1": 1}
    assert any("`strategy.rejoin`" in entry["refused"] for entry in results["ledger"]["entries"])


CRASHED = {
    "iterative": ("schedule=iterative",),
    "chunks": ("schedule.blocks_per_message=1",),
    "rounds": ("strategy=fedspallm", "strategy.rounds=2", "schedule.blocks_per_message=1"),
}


class Crashing(LocalGrid):
    """Node 101 does what it is ordered and dies before it can answer, the first time."""

    def __init__(self, nodes: int):
        super().__init__(app, nodes)
        self._died: set[str] = set()

    def deliver(self, message: Message) -> Message | None:
        reply = super().deliver(message)
        order = str(message.content.config_records.get("order"))
        asked = message.metadata.message_type == "train.prune"
        if not asked or message.metadata.dst_node_id != LOST or order in self._died:
            return reply
        self._died.add(order)
        return Message(Error(8, "the app exited"), reply_to=message)


def check_crashed(folder, *options: str):
    """Compare a run whose client dies again and again with one that is left alone."""
    options = (*options, "strategy.min_clients=3", "data.partition=iid")
    job(folder / "undisturbed", *options)
    grid = Crashing(3)
    results = job(folder / "run", *options, grid=grid)
    assert len(grid._died) >= 3
    assert not results["ledger"]["refused"]
    assert same_masks(masks_of(folder / "run"), masks_of(folder / "undisturbed"))


@pytest.mark.parametrize("options", CRASHED.values(), ids=CRASHED)
def test_one_whose_process_dies_is_asked_again_and_gives_the_same(tmp_path, model, options):
    check_crashed(tmp_path, *options, f"model={model}")


def test_what_was_delivered_in_segments_is_still_there(tmp_path, monkeypatch):
    small_messages(monkeypatch, 1 << 16)
    check_crashed(tmp_path, *CRASHED["rounds"])
