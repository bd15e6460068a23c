"""Under masks: clients that vanish at any stage, servers that die at any message, and liars."""

import json
import random
from pathlib import Path
from uuid import uuid4

import pytest
from flwr.app import Error, Message

from client_app.app import app
from fedprune.errors import QuorumError
from fedprune.flower.messages import set_message_id
from fedprune.models.export import SIDECAR
from server_app.job import run_job
from tests.support.grid import LocalGrid
from tests.support.jobs import QUIET, small_inputs

CLIENTS = 5
STAGES = ("query.keys", "query.shares", "train.prune", "query.sign", "query.unmask")
SUMS = "strategy=fedstats schedule=iterative"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_inputs(tmp_path_factory.mktemp("inputs"), texts=30)


class Vanishing(LocalGrid):
    """Some nodes give no answer any more, from the first message of a kind on.

    Parameters
    ----------
    gone : Mapping[int, str]
        Partition -> the kind.
    """

    def __init__(self, gone=(), clients=CLIENTS):
        super().__init__(app, clients)
        self._gone, self._lost = dict(gone), set()

    def deliver(self, message):
        partition = message.metadata.dst_node_id - 100
        if self._gone.get(partition) == message.metadata.message_type:
            self._lost.add(partition)
        if partition not in self._lost:
            return super().deliver(message)
        self.sent.append(message)
        reply = Message(Error(2, "gone"), reply_to=message)
        set_message_id(reply, str(uuid4()))
        return reply

    def asked(self, kind):
        return [one for one in self.sent if one.metadata.message_type == kind]


def start(folder: Path, inputs, *overrides, grid=None) -> dict:
    words = " ".join([*QUIET, *inputs, SUMS, "privacy.first_input=own", *overrides])
    run_job(grid or Vanishing(), {"overrides": words, "output-dir": str(folder)}, 1)
    return json.loads((folder / "results.json").read_text())


def secure(folder, inputs, *overrides, grid=None) -> dict:
    least = ["privacy.secure=true", "privacy.min_cohort=3", "strategy.min_clients=3"]
    return start(folder, inputs, *least, *overrides, grid=grid)


def go_on(folder: Path, *overrides, grid=None) -> dict:
    run_job(grid or Vanishing(), {"overrides": " ".join([f"resume={folder}", *overrides])}, 2)
    return json.loads((folder / "results.json").read_text())


def masks(folder: Path) -> bytes:
    return (folder / "model" / SIDECAR).read_bytes()


@pytest.fixture(scope="module")
def everyone(tmp_path_factory, inputs):
    folder = tmp_path_factory.mktemp("plain") / "run"
    start(folder, inputs)
    return masks(folder)


@pytest.fixture(scope="module")
def four(tmp_path_factory, inputs):
    """The masks of the others where client 2 answers nothing."""
    folder = tmp_path_factory.mktemp("four") / "run"
    start(folder, inputs, grid=Vanishing({2: "train.prune"}))
    return masks(folder)


@pytest.mark.parametrize("stage", STAGES[:3])
def test_who_vanishes_before_its_answer_is_not_in_the_sum(tmp_path, inputs, four, stage):
    results = secure(tmp_path / "run", inputs, grid=Vanishing({2: stage}))
    assert masks(tmp_path / "run") == four
    assert results["ledger"]["refused"]


@pytest.mark.parametrize("stage", STAGES[3:])
def test_who_vanishes_after_its_answer_is_in_that_sum_and_no_later_one(tmp_path, inputs, stage):
    run, plain = tmp_path / "run", tmp_path / "plain"
    secure(run, inputs, "schedule=one_shot", grid=Vanishing({2: stage}))
    start(plain, inputs, "schedule=one_shot")
    assert masks(run) == masks(plain)


def test_too_few_stop_the_run_and_open_nothing_and_all_together_go_on(tmp_path, inputs, everyone):
    grid = Vanishing({1: "train.prune", 2: "train.prune"})
    with pytest.raises(QuorumError, match="Nothing was opened"):
        secure(tmp_path / "run", inputs, grid=grid)
    assert grid.asked("train.prune") and not grid.asked("query.sign") + grid.asked("query.unmask")
    grid = Vanishing()
    go_on(tmp_path / "run", grid=grid)
    assert masks(tmp_path / "run") == everyone
    # The three whose answers were there are not asked about the first block again.
    assert len(grid.asked("train.prune")) == 3 * CLIENTS - 3


@pytest.mark.parametrize("stage", STAGES[3:])
def test_too_few_who_sign_or_open_stop_the_run_and_can_go_on(tmp_path, inputs, everyone, stage):
    grid = Vanishing({1: stage, 2: stage})
    with pytest.raises(QuorumError, match="have signed|have answered"):
        secure(tmp_path / "run", inputs, grid=grid)
    go_on(tmp_path / "run")
    assert masks(tmp_path / "run") == everyone


class Stopping(Vanishing):
    """The server dies before a message of a kind is answered, or after that."""

    def __init__(self, kind, after, answered, gone=(), clients=CLIENTS):
        super().__init__(gone, clients)
        self._kind, self._left, self._answered = kind, after, answered

    def deliver(self, message):
        mine = message.metadata.message_type == self._kind
        self._left -= mine
        stop = mine and self._left < 0
        reply = None if stop and not self._answered else super().deliver(message)
        if stop:
            raise KeyboardInterrupt
        return reply


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", STAGES)
def test_a_run_goes_on_to_the_same_masks_wherever_it_dies(
    tmp_path, inputs, everyone, kind, answered
):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        secure(folder, inputs, grid=Stopping(kind, 2, answered))
    results = go_on(folder)
    assert masks(folder) == everyone
    assert not results["ledger"]["refused"]


@pytest.mark.slow
def test_a_run_that_dies_twenty_times_goes_on_to_the_same_masks(tmp_path, inputs, everyone):
    draw, folder = random.Random(0), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        secure(folder, inputs, grid=Stopping("query.keys", 3, True))
    for _ in range(19):
        kind = draw.choice(STAGES[2:])
        try:
            go_on(folder, grid=Stopping(kind, draw.randrange(CLIENTS), draw.random() < 0.5))
            break
        except KeyboardInterrupt:
            pass
    go_on(folder)
    assert masks(folder) == everyone


def test_a_node_forgets_its_secrets_when_the_job_is_over_but_not_that_it_answered(tmp_path, inputs):
    grid = Vanishing()
    secure(tmp_path / "run", inputs, grid=grid)
    kept = grid.kept()
    assert {Path(name).name for name in kept} == {
        *(f"partition-{n:05d}" for n in range(CLIENTS)),
        "secure",
        "sent",
    }


def test_a_survey_under_masks_that_dies_at_its_opening_goes_on(tmp_path, inputs):
    more = ["allocation=owl", "schedule=one_shot"]
    start(tmp_path / "plain", inputs, *more)
    with pytest.raises(KeyboardInterrupt):
        secure(tmp_path / "run", inputs, *more, grid=Stopping("query.unmask", 1, True))
    grid = Vanishing()
    go_on(tmp_path / "run", grid=grid)
    assert masks(tmp_path / "run") == masks(tmp_path / "plain")
    assert len(grid.asked("train.prune")) == CLIENTS  # nobody is surveyed again


class Misleading(Vanishing):
    """Somebody gives one node another configuration than all others, or another's results."""

    misled = 0

    def deliver(self, message):
        third = message.metadata.dst_node_id == 102
        if third and message.metadata.message_type == "train.prune":
            settings = message.content["config"]
            told = str(settings["config-yaml"])
            settings["config-yaml"] = told.replace("seed: 0", "seed: 1", 1)
            self.misled += settings["config-yaml"] != told
        return super().deliver(message)


def test_who_was_told_something_else_is_left_out(tmp_path, inputs, four, caplog):
    """Its words would not add up with the others': masks are bound to what nodes were told."""
    grid = Misleading()
    results = secure(tmp_path / "run", inputs, grid=grid)
    assert grid.misled and masks(tmp_path / "run") == four
    assert len(results["ledger"]["refused"]) == 1
    assert "answered to something else than all were told" in caplog.text
