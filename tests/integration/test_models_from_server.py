"""Nodes that lack the model get it from the server: whole, verified, once, and prune the same."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from transformers import AutoModelForCausalLM

import server_app.job
from client_app import model, texts
from client_app.app import app
from fedprune.errors import ModelError, QuorumError
from fedprune.models.embedded import demo_model_path
from fedprune.models.export import SIDECAR
from fedprune.models.transfer import Manifest, Offer
from tests.support.grid import LocalGrid
from tests.support.jobs import job, opt_folder

SERVER = "model.source=server"
NODES = 2


class Homes(LocalGrid):
    """Nodes with a FEDPRUNE_HOME each below ``folder``; further parameters as LocalGrid."""

    def __init__(self, app, nodes, folder: Path, **more):
        super().__init__(app, nodes, **more)
        self.folder = folder

    def home(self, partition: int) -> Path:
        """Return a node's FEDPRUNE_HOME."""
        return self.folder / f"home-{partition}"

    def deliver(self, message: Message) -> Message | None:
        """Let a node answer as a process of its own: nothing cached, its own home."""
        server = os.environ["FEDPRUNE_HOME"]
        first = self.contexts[0].node_id
        os.environ["FEDPRUNE_HOME"] = str(self.home(message.metadata.dst_node_id - first))
        try:
            return super().deliver(message)
        finally:
            os.environ["FEDPRUNE_HOME"] = server
            for cached in (model.model_at, model._model_shapes, model._fingerprint):
                cached.cache_clear()
            for cached in (texts._drawn, texts._documents, texts._windows, texts._shares):
                cached.cache_clear()

    def kinds(self) -> list[str]:
        """Return the kinds of the messages that were sent, in order."""
        return [message.metadata.message_type for message in self.sent]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """Segments so small that a small model has several."""
    monkeypatch.setattr(server_app.job, "MESSAGE_BYTES", 1_000_000)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run whose nodes have the model."""
    folder = tmp_path_factory.mktemp("runs") / "local"
    job(folder, clients=NODES)
    return folder


def masks(folder) -> bytes:
    return (folder / "model" / SIDECAR).read_bytes()


def phases(results, client: str) -> list[tuple[str, str]]:
    entries = results["ledger"]["entries"]
    return [(e["phase"], e["refused"]) for e in entries if e["client"].endswith(client)]


def stored(grid: Homes, partition: int) -> list:
    return sorted(p for p in (grid.home(partition) / "models").iterdir() if p.name[0] != ".")


def away(model, tmp_path, monkeypatch):
    """Give the server a model that no node finds under its name: they are told another path."""
    hidden = tmp_path / "server"
    shutil.copytree(model, hidden)
    real = server_app.job.load_model
    monkeypatch.setattr(
        server_app.job, "load_model", lambda config, path=None: real(config, path or str(hidden))
    )
    return f"model={tmp_path / 'only-on-the-server'}"


def test_the_demo_comes_in_segments_and_the_masks_are_the_same(tmp_path, local):
    grid = Homes(app, NODES, tmp_path)
    results = job(tmp_path / "run", SERVER, grid=grid)
    assert masks(tmp_path / "run") == masks(local)
    offer = Offer.of(str(demo_model_path()), None, 1_000_000)
    for partition in range(NODES):
        (folder,) = stored(grid, partition)
        assert folder.name == offer.manifest.digest
        for name, path in offer.paths.items():
            assert (folder / name).read_bytes() == path.read_bytes()
        found = phases(results, f"partition {partition}")
        assert found[:3] == [("handshake", ""), ("model", ""), ("handshake", "")]
    # Every part was sent once to each node, and it is not counted as the method's cost.
    size = offer.manifest.size * NODES
    assert grid.kinds().count("query.model") == NODES * (len(offer.manifest.segments) + 1)
    ledger = results["ledger"]
    before = json.loads((local / "results.json").read_text())["ledger"]
    assert size < ledger["model_bytes"] < 1.02 * size and before["model_bytes"] == 0
    assert ledger["bytes_down"] < before["bytes_down"] + 50_000
    bits = [found["of_dense"]["bits_per_weight"] for found in (ledger, before)]
    assert bits[0] == pytest.approx(bits[1], rel=0.02)


def test_what_a_node_has_is_not_sent_again(tmp_path):
    grid = Homes(app, 2, tmp_path)
    job(tmp_path / "first", SERVER, grid=grid)
    sent = len(grid.kinds())
    results = job(tmp_path / "second", SERVER, grid=grid)
    assert "query.model" not in grid.kinds()[sent:]
    assert results["ledger"]["model_bytes"] == 0


def test_a_model_that_rots_on_a_node_is_sent_again(tmp_path, local):
    grid = Homes(app, NODES, tmp_path)
    job(tmp_path / "first", SERVER, grid=grid)
    weights = stored(grid, 1)[0] / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-4] + bytes(4))
    assert weights.read_bytes() != data
    results = job(tmp_path / "second", SERVER, grid=grid)
    assert weights.read_bytes() == data and masks(tmp_path / "second") == masks(local)
    assert ("model", "") in phases(results, "partition 1")
    assert ("model", "") not in phases(results, "partition 0")


def test_models_in_shards(tmp_path, monkeypatch):
    whole, model = opt_folder(tmp_path / "whole"), tmp_path / "model"
    shutil.copytree(whole, model)
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(model, max_shard_size="100KB")
    job(tmp_path / "local", f"model={model}", clients=2)
    name = away(model, tmp_path, monkeypatch)
    grid = Homes(app, 2, tmp_path)
    results = job(tmp_path / "run", name, "model.source=server", grid=grid)
    assert results["ledger"]["model_bytes"] > 0
    assert masks(tmp_path / "run") == masks(tmp_path / "local")


def test_a_node_with_a_copy_is_sent_nothing(tmp_path, monkeypatch):
    nodes = {
        0: {"partition-id": 0, "num-partitions": 2, "model-path": str(demo_model_path())},
        1: {"partition-id": 1, "num-partitions": 2},
    }
    grid = Homes(app, 2, tmp_path, node_configs=nodes)
    results = job(tmp_path / "run", SERVER, grid=grid)
    assert [phase for phase, _ in phases(results, "partition 0")].count("model") == 0
    assert [phase for phase, _ in phases(results, "partition 1")].count("model") == 1


def test_a_folder_of_that_name_on_the_node_is_used_and_its_weights_decide(tmp_path, monkeypatch):
    other = opt_folder(tmp_path / "other")
    name = away(demo_model_path(), tmp_path, monkeypatch)
    shutil.copytree(other, tmp_path / "only-on-the-server")
    with pytest.raises(QuorumError, match="its model's weights differ"):
        job(tmp_path / "run", name, "model.source=server", grid=Homes(app, 1, tmp_path))


def test_a_server_killed_in_the_middle_goes_on_where_it_was(tmp_path, local):
    class Killed(Homes):
        left = 4

        def deliver(self, message):
            if message.metadata.message_type == "query.model":
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            return super().deliver(message)

    first = Killed(app, 2, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "killed", SERVER, grid=first)
    assert not stored(first, 0) and not stored(first, 1)
    grid = Homes(app, 2, tmp_path)
    job(tmp_path / "run", SERVER, grid=grid)
    segments = len(Offer.of(str(demo_model_path()), None, 1_000_000).manifest.segments)
    # Two manifests and two segments came before the kill, the manifests come again.
    assert grid.kinds().count("query.model") == 2 * (segments + 1) - 2
    assert len(stored(grid, 0)) == len(stored(grid, 1)) == 1
    assert masks(tmp_path / "run") == masks(local)


def test_a_node_that_dies_in_the_middle_is_left_out_and_goes_on_in_the_next_run(tmp_path):
    dead = []

    def dies(partition, reply):
        if partition == 1 and "model" in reply.content and reply.content["model"]["held"] == 3:
            dead.append(partition)
        return None if dead and partition == 1 else reply

    grid = Homes(app, 2, tmp_path, tamper=dies)
    results = job(tmp_path / "run", SERVER, "strategy.timeout=0.5", grid=grid)
    assert [client["partition_id"] for client in results["clients"]] == [0]
    assert [phase for phase, refused in phases(results, "partition 1") if refused] == ["model"]
    again = Homes(app, 2, tmp_path)
    results = job(tmp_path / "again", SERVER, grid=again)
    assert len(results["clients"]) == 2
    segments = len(Offer.of(str(demo_model_path()), None, 1_000_000).manifest.segments)
    assert again.kinds().count("query.model") == segments - 3 + 1


def test_two_nodes_of_one_machine_share_the_model(tmp_path):
    grid = Homes(app, 2, tmp_path)
    grid.home = lambda partition: tmp_path / "shared"
    results = job(tmp_path / "run", SERVER, grid=grid)
    assert len(results["clients"]) == 2
    (folder,) = stored(grid, 0)
    weights = demo_model_path() / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == weights.read_bytes()


def test_a_file_that_changes_under_the_server_is_noticed(tmp_path, monkeypatch):
    name = away(demo_model_path(), tmp_path, monkeypatch)
    weights = tmp_path / "server" / "model.safetensors"
    real = Offer.of.__func__

    def changing(cls, *words):
        offer = real(cls, *words)
        with weights.open("r+b") as file:
            file.seek(weights.stat().st_size - 10)
            file.write(b"??????????")
        return offer

    monkeypatch.setattr(Offer, "of", classmethod(changing))
    words = "segment of 'model.safetensors' is not what the model's manifest says"
    with pytest.raises(QuorumError, match=words):
        job(tmp_path / "run", name, "model.source=server", grid=Homes(app, 1, tmp_path))


def test_a_node_that_never_has_enough_is_given_up(tmp_path):
    def greedy(partition, reply):
        if "model" in reply.content:
            reply.content["model"]["held"] = 0
        return reply

    grid = Homes(app, 1, tmp_path, tamper=greedy)
    with pytest.raises(QuorumError, match="parts of a model of 8 segments"):
        job(tmp_path / "run", SERVER, grid=grid)


def test_a_model_that_is_no_safetensors_is_refused_before_a_node_is_asked(tmp_path, monkeypatch):
    model = tmp_path / "model"
    shutil.copytree(demo_model_path(), model)
    state = AutoModelForCausalLM.from_pretrained(demo_model_path()).state_dict()
    (model / "model.safetensors").unlink()
    torch.save(state, model / "pytorch_model.bin")
    grid = LocalGrid(app, 2)
    with pytest.raises(ModelError, match=r"`model.source` must be 'local'.*save_pretrained"):
        job(tmp_path / "run", f"model={model}", "model.source=server", grid=grid)
    assert not grid.sent
    assert (
        "save_pretrained" in json.loads((tmp_path / "run" / "failure.json").read_text())["reason"]
    )


@pytest.mark.parametrize(
    ("limit", "words"),
    [(0, "`max-model-gb`.* is 0: it takes no model"), (0.001, "`max-model-gb`.* is 0.001, the")],
)
def test_an_operator_who_takes_no_model_or_no_large_one(tmp_path, limit, words):
    nodes = {0: {"partition-id": 0, "max-model-gb": limit}}
    with pytest.raises(QuorumError, match=words):
        job(tmp_path / "run", SERVER, grid=Homes(app, 1, tmp_path, node_configs=nodes))


def test_a_manifest_of_other_files_is_refused_by_the_node(tmp_path):
    """A server may say anything; what comes is held against what it announced."""

    class Lying(Homes):
        def deliver(self, message):
            arrays = message.content.array_records.get("arrays", {})
            if "manifest" in arrays:
                manifest = Manifest.read(arrays["manifest"].data)
                text = manifest.text.replace(b"config.json", b"confog.json")
                arrays["manifest"].data = text
                arrays["manifest"].shape = (len(text),)
            return super().deliver(message)

    with pytest.raises(QuorumError, match="'confog.json' may not travel"):
        job(tmp_path / "run", SERVER, grid=Lying(app, 1, tmp_path))


def test_a_model_that_is_emptied_away_in_the_middle_of_a_run(tmp_path):
    class Emptied(Homes):
        def deliver(self, message):
            if message.metadata.message_type == "train.prune":
                shutil.rmtree(self.home(0) / "models", ignore_errors=True)
            return super().deliver(message)

    with pytest.raises(QuorumError, match="is not on this node any more"):
        job(tmp_path / "run", SERVER, grid=Emptied(app, 1, tmp_path))
