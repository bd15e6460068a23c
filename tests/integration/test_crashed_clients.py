"""A client's process that dies once at every order does not change the masks."""

from pathlib import Path

import pytest
from flwr.app import Error, Message

from client_app.app import app
from tests.support.grid import LocalGrid
from tests.support.jobs import job, masks_of, opt_folder, same_masks, small_messages

pytestmark = pytest.mark.usefixtures("three_blocks")

JOBS = {
    "iterative": ("schedule=iterative",),
    "chunks": ("schedule.blocks_per_message=1",),
    "rounds": ("strategy=fedspallm", "strategy.rounds=2", "schedule.blocks_per_message=1"),
}


class Crashing(LocalGrid):
    """Node 101 does what it is ordered and dies before it can answer, the first time."""

    def __init__(self, nodes: int) -> None:
        super().__init__(app, nodes)
        self._died: set[str] = set()

    def deliver(self, message: Message) -> Message | None:
        reply = super().deliver(message)
        order = str(message.content.config_records.get("order"))
        asked = message.metadata.message_type == "train.prune"
        if not asked or message.metadata.dst_node_id != 101 or order in self._died:
            return reply
        self._died.add(order)
        return Message(Error(8, "the app exited"), reply_to=message)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opt_folder(tmp_path_factory.mktemp("model") / "opt")


def check(folder: Path, *options: str) -> None:
    """Compare a run whose client dies again and again with one that is left alone."""
    options = (*options, "strategy.min_clients=3", "data.partition=iid")
    job(folder / "undisturbed", *options)
    grid = Crashing(3)
    results = job(folder / "run", *options, grid=grid)
    assert len(grid._died) >= 3
    assert not results["ledger"]["refused"]
    assert same_masks(masks_of(folder / "run"), masks_of(folder / "undisturbed"))


@pytest.mark.parametrize("options", JOBS.values(), ids=JOBS)
def test_it_is_asked_again_and_gives_the_same(tmp_path, model, options):
    check(tmp_path, *options, f"model={model}")


def test_what_was_delivered_in_segments_is_still_there(tmp_path, monkeypatch):
    small_messages(monkeypatch, 1 << 16)
    check(tmp_path, *JOBS["rounds"])
