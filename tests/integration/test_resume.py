"""Runs that stopped go on: with whom, with what, and when they may not."""

import errno
import json
import time
from pathlib import Path

import pytest

from client_app import texts
from client_app.app import app
from client_app.scratch import Scratch
from fedprune.errors import ConfigError, FedpruneError, ModelError, QuorumError
from server_app.job import run_job
from server_app.run_folder import RunFolder, Tally
from strategies.exchange import WorkerDiedError
from tests.support.grid import LocalGrid
from tests.support.jobs import QUIET, Stopping, masks_of, refusals, same_masks, small_inputs

pytestmark = pytest.mark.usefixtures("three_blocks")

CLIENTS = 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_inputs(tmp_path_factory.mktemp("inputs"), texts=12)


def start(folder: Path, inputs, *overrides: str, grid=None) -> dict:
    words = " ".join([*QUIET, *inputs, "schedule.blocks_per_message=1", *overrides])
    run_job(grid or Stopping(), {"overrides": words, "output-dir": str(folder)}, 1)
    return json.loads((folder / "results.json").read_text())


def go_on(folder: Path, *overrides: str, grid=None) -> dict:
    run_job(grid or Stopping(), {"overrides": " ".join([f"resume={folder}", *overrides])}, 2)
    return json.loads((folder / "results.json").read_text())


def stopped(folder: Path, inputs, *overrides: str, after: int = 4, **more) -> Path:
    with pytest.raises(KeyboardInterrupt):
        start(folder, inputs, *overrides, grid=Stopping(after=after, **more))
    return folder


def test_a_clock_that_is_ahead_at_resume_costs_nothing(tmp_path, inputs, monkeypatch):
    options = ["schedule=iterative", "strategy=fedstats"]
    folder = stopped(tmp_path / "run", inputs, *options, after=8)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 30 * 24 * 3600)
    results = go_on(folder)
    assert not refusals(results)
    start(tmp_path / "whole", inputs, *options)
    assert same_masks(masks_of(folder), masks_of(tmp_path / "whole"))


def test_done_blocks_are_not_asked_for_again(tmp_path, inputs):
    folder = stopped(tmp_path / "run", inputs)
    grid = Stopping()
    results = go_on(folder, grid=grid)
    orders = [m for m in grid.sent if m.metadata.message_type == "train.prune"]
    assert len(orders) == 2 * CLIENTS
    start(tmp_path / "whole", inputs)
    assert same_masks(masks_of(folder), masks_of(tmp_path / "whole"))
    phases = [entry["phase"] for entry in results["ledger"]["entries"]]
    assert phases.count("handshake") == 2 * CLIENTS and phases.count("prune") == 3 * CLIENTS
    assert not grid.kept()


def test_who_does_not_come_back_is_lost_by_name(tmp_path, inputs):
    folder = stopped(tmp_path / "run", inputs)
    grid = Stopping()
    grid.get_node_ids = lambda: [100, 102]
    results = go_on(folder, grid=grid)
    assert "it has not come back" in refusals(results)["partition 1"]
    assert set(results["agreement"]["votes_by_voters"]) == {"2", "3"}
    assert len(results["clients"]) == CLIENTS


def test_nobody_else_joins(tmp_path, inputs):
    folder = stopped(tmp_path / "run", inputs, "strategy.fraction=0.5", "seed=3", after=3)
    results = go_on(folder)
    assert len(results["clients"]) == 2
    assert set(results["agreement"]["votes_by_voters"]) == {"2"}


def test_other_samples_are_another_client(tmp_path, inputs):
    data = Path(inputs[1].partition("=")[2])
    moved = tmp_path / "texts.jsonl"
    moved.write_bytes(data.read_bytes())
    mine = [inputs[0], f"data={moved}", inputs[2]]
    folder = stopped(tmp_path / "run", mine)
    moved.write_text(data.read_text().replace("return", "give back"))
    texts._documents.cache_clear()  # a process of its own would read it anew
    texts._drawn.cache_clear()
    with pytest.raises(QuorumError, match="with the same samples"):
        go_on(folder)


def test_a_quorum_that_comes_back_gets_the_undisturbed_masks(tmp_path, inputs):
    """Who was silent when the run stopped is asked again."""

    def silent(partition, reply):
        arrays = reply.content.array_records.get("arrays", {})
        return None if partition == 1 and "block-00001" in arrays else reply

    options = ("strategy.min_clients=3", "strategy.timeout=0.5")
    with pytest.raises(QuorumError) as caught:
        start(tmp_path / "run", inputs, *options, grid=LocalGrid(app, CLIENTS, tamper=silent))
    assert f"fedprune run resume={tmp_path / 'run'}" in str(caught.value)
    assert (tmp_path / "run" / "failure.json").exists()
    go_on(tmp_path / "run", "strategy.timeout=60")
    start(tmp_path / "whole", inputs)
    assert same_masks(masks_of(tmp_path / "run"), masks_of(tmp_path / "whole"))
    assert not (tmp_path / "run" / "failure.json").exists()


def test_fewer_clients_may_be_enough_from_now_on(tmp_path, inputs):
    folder = stopped(tmp_path / "run", inputs, "strategy.min_clients=3")
    few = Stopping()
    few.get_node_ids = lambda: [100, 101]
    with pytest.raises(QuorumError, match="asks for 3"):
        go_on(folder, grid=few)
    assert len(go_on(folder, "strategy.min_clients=2", grid=few)["clients"]) == CLIENTS


def test_a_dead_worker_s_run_says_how_to_go_on(tmp_path, inputs):
    grid = Stopping(after=4, error=WorkerDiedError("a worker died."))
    with pytest.raises(WorkerDiedError, match="resume="):
        start(tmp_path / "run", inputs, grid=grid)
    go_on(tmp_path / "run")


def test_a_run_that_only_has_to_be_evaluated_needs_no_nodes(tmp_path, inputs, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("server_app.job.measure", lambda *a: (_ for _ in ()).throw(OSError))
        with pytest.raises(OSError):
            start(tmp_path / "run", inputs, "allocation=owl")
    grid = Stopping(clients=0)
    results = go_on(tmp_path / "run", grid=grid)
    assert not grid.sent and not refusals(results)
    assert len(results["clients"]) == CLIENTS


def test_a_kill_between_export_and_results_costs_no_second_export(tmp_path, inputs, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("server_app.job.build_results", lambda *a: (_ for _ in ()).throw(OSError))
        with pytest.raises(OSError):
            start(tmp_path / "run", inputs)
    monkeypatch.setattr("server_app.job.write_model", lambda *a: pytest.fail("exported again"))
    go_on(tmp_path / "run")


def test_a_finished_run_is_left_as_it_is(tmp_path, inputs):
    start(tmp_path / "run", inputs)
    before = (tmp_path / "run" / "results.json").read_bytes()
    # A process that was killed at the very end did not come to the end of a file.
    (tmp_path / "run" / "progress.json.partial").write_text("{")
    grid = Stopping()
    go_on(tmp_path / "run", grid=grid)
    assert not grid.sent
    assert not list((tmp_path / "run").glob("*.partial"))
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_a_run_that_never_began_begins(tmp_path, inputs):
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", inputs, grid=Stopping("query.handshake", 1))
    assert len(go_on(tmp_path / "run")["clients"]) == CLIENTS


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ConfigError, match="`resume` must be the folder of a run"):
        go_on(tmp_path / "nothing")


def test_a_configuration_that_was_edited(tmp_path, inputs):
    folder = stopped(tmp_path / "run", inputs)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("sparsity: 0.5", "sparsity: 0.6"))
    with pytest.raises(ConfigError, match="`config.yaml` that was changed"):
        go_on(folder)


def test_other_sources(tmp_path, inputs, monkeypatch):
    folder = stopped(tmp_path / "run", inputs)
    for where in ("server_app.job", "client_app.handshake"):
        monkeypatch.setattr(f"{where}.source_digest", lambda: "another release")
    with pytest.raises(ConfigError, match="other sources of fedprune") as caught:
        go_on(folder)
    assert "fedprune run resume" not in str(caught.value)


def test_a_run_at_work_is_not_disturbed(tmp_path, inputs):
    folder = tmp_path / "run"
    errors = []

    class Nosy(Stopping):
        def deliver(self, message):
            if not errors and message.metadata.message_type == "train.prune":
                with pytest.raises(ConfigError, match="another process is at work") as caught:
                    go_on(folder)
                errors.append(caught)
            return super().deliver(message)

    start(folder, inputs, grid=Nosy())
    assert errors


@pytest.mark.parametrize("kind", ["plain", "explained"])
def test_a_client_whose_disk_was_full_goes_on_once_there_is_room(
    tmp_path, inputs, monkeypatch, kind
):
    full = OSError(errno.ENOSPC, "full")
    error = full if kind == "plain" else ModelError("hidden states go to a full disk")
    error.__cause__ = None if error is full else full
    save, left = Scratch.save_hidden, [5]

    def fails(scratch, block, hidden):
        left[0] -= 1
        if not left[0]:
            raise error
        save(scratch, block, hidden)

    with monkeypatch.context() as patched, pytest.raises(QuorumError):
        patched.setattr(Scratch, "save_hidden", fails)
        start(tmp_path / "run", inputs, "strategy.min_clients=3", "schedule=iterative")
    go_on(tmp_path / "run")
    start(tmp_path / "whole", inputs, "schedule=iterative")
    assert same_masks(masks_of(tmp_path / "run"), masks_of(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["block-00000.safetensors", "block-00000.json"])
def test_a_block_that_is_gone_is_not_taken_for_one_that_stays_dense(tmp_path, inputs, name):
    folder = stopped(tmp_path / "run", inputs, "strategy=fedspallm", "pruner=sparsegpt")
    (folder / "blocks" / "round-01" / name).unlink()
    with pytest.raises(ConfigError, match="is damaged .block 0 of round 1: ") as caught:
        go_on(folder)
    assert "fedprune run resume" not in str(caught.value)


@pytest.mark.parametrize("full", [[(Tally, "add")], [(Tally, "add"), (RunFolder, "_write_text")]])
def test_a_full_disk_says_how_to_go_on(tmp_path, inputs, monkeypatch, full):
    """Also where there is no room for a note of the failure."""

    def fails(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    start(tmp_path / "whole", inputs)
    with monkeypatch.context() as patched:
        run = tmp_path / "run"
        grid = Stopping(after=4, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            start(run, inputs, grid=grid)
        for kind, name in full:
            patched.setattr(kind, name, fails)
        with pytest.raises(FedpruneError, match="No space left on device.*resume=") as caught:
            go_on(run)
    assert (run / "failure.json").exists() == (len(full) == 1) and str(run) in str(caught.value)
    go_on(run)
    assert same_masks(masks_of(run), masks_of(tmp_path / "whole"))


def test_a_damaged_state_is_not_to_be_gone_on_with(tmp_path, inputs):
    folder = stopped(tmp_path / "run", inputs)
    (folder / "state" / "ledger.jsonl").unlink()
    with pytest.raises(ConfigError, match="Start the run anew"):
        go_on(folder)
    assert "is damaged" in json.loads((folder / "failure.json").read_text())["reason"]


def test_a_client_that_erred_leaves_nothing_private(tmp_path, inputs, monkeypatch):
    grid = Stopping(after=5)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", inputs, grid=grid)
    assert "partition-00002/hidden-00001.safetensors" in grid.kept()

    def fails(*request):
        raise FedpruneError("out of memory")

    monkeypatch.setattr("client_app.session.Session.answers", fails)
    with pytest.raises(QuorumError):
        go_on(tmp_path / "run", grid=grid)
    assert not grid.kept()
