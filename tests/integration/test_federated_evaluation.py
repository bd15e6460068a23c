"""Clients measure the final model on their own texts: every strategy, segments, what goes wrong."""

import json
import math
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord

import strategies.evaluation
from client_app.app import app
from fedprune.config import config_from_overrides
from fedprune.data.clients import heldout_shares
from fedprune.data.texts import load_documents
from fedprune.disk import home
from fedprune.evaluation.perplexity import perplexity, token_windows
from fedprune.models.loading import load_model
from tests.support.grid import LocalGrid
from tests.support.jobs import QUIET, job

pytestmark = pytest.mark.usefixtures("three_blocks")

CLIENTS = 3
FEDERATED = ("evaluation.federated=true", "evaluation.seq_len=64", "evaluation.max_windows=2")


def own(results: dict) -> dict:
    return results["federated_evaluation"]


def kept_on_nodes() -> set[Path]:
    return set((home() / "nodes").glob("*/partition-*"))


def scored(model: str, *overrides: str) -> list[float]:
    """Return each client's mean log-likelihood of its own texts, computed without a federation."""
    config = config_from_overrides([*QUIET, *FEDERATED, *overrides, f"model={model}"])
    loaded = load_model(config.model)
    documents = [load_documents(config.data, part) for part in ("train", "heldout")]
    return [
        perplexity(loaded, token_windows(share, loaded.tokenizer, 64, 2)).nll
        for share in heldout_shares(config, *documents, CLIENTS)
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=fedprllm",),
        ("strategy=fedprllm", "schedule=iterative", "strategy.scaling=true"),
        ("strategy=fedspallm", "strategy.rounds=2", "strategy.ramp=linear", "pruner=sparsegpt"),
        ("strategy=fedstats", "schedule=iterative"),
        ("strategy=fedhessian", "pruner=sparsegpt"),
    ],
    ids=["votes", "scaled", "rounds", "sums", "moments"],
)
def test_each_client_s_figures_are_those_of_the_exported_model(tmp_path, overrides):
    before = kept_on_nodes()
    results = job(tmp_path / "run", *FEDERATED, *overrides, clients=CLIENTS)
    found = own(results)
    dense, pruned = scored("demo"), scored(str(tmp_path / "run" / "model"))
    clients = found["clients"]
    assert found["left_out"] == {} and len(clients) == CLIENTS
    for partition in range(CLIENTS):
        figures = clients[f"partition {partition}"]
        assert figures["tokens"] == 2 * 63
        assert figures["dense"] == pytest.approx(math.exp(dense[partition]), rel=1e-6)
        assert figures["pruned"] == pytest.approx(math.exp(pruned[partition]), rel=1e-6)
        assert figures["ratio"] == pytest.approx(figures["pruned"] / figures["dense"])
    assert found["mean"]["pruned"] == pytest.approx(math.exp(sum(pruned) / CLIENTS), rel=1e-6)
    assert found["worst"] == max(clients, key=lambda name: clients[name]["ratio"])
    assert kept_on_nodes() == before
    described = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    for key in (*found, *found["mean"]):
        assert f".{key}" in described, key


def test_long_models_come_in_segments_and_their_bytes_are_counted(tmp_path, monkeypatch):
    whole = job(tmp_path / "whole", *FEDERATED, clients=CLIENTS)
    monkeypatch.setattr(strategies.evaluation, "MESSAGE_BYTES", 20_000)
    grid = LocalGrid(app, CLIENTS)
    cut = job(tmp_path / "cut", *FEDERATED, clients=CLIENTS, grid=grid)
    assert own(cut) == own(whole)
    sent = [message for message in grid.sent if message.metadata.message_type == "query.deliver"]
    sizes = [len(message.content["arrays"]["segment"].data) for message in sent]
    assert len(sent) > 2 * CLIENTS and set(sizes) == {20_000}
    down = [
        sum(e["bytes_down"] for e in run["ledger"]["entries"] if e["phase"] == "evaluate")
        for run in (whole, cut)
    ]
    assert CLIENTS * sum(sizes) / CLIENTS < down[0] < down[1] < down[0] * 2


class Hostile(LocalGrid):
    """Changes what partition 2, the last to be asked, gets of the final model."""

    def __init__(self, change):
        super().__init__(app, CLIENTS)
        self._change = change

    def deliver(self, message):
        metadata = message.metadata
        if metadata.dst_node_id == 102 and metadata.message_type == "evaluate.federated":
            arrays, listed = message.content["arrays"], message.content["segments"]
            array = arrays["segment"]
            data = self._change(array.data, listed)
            broken = Array("uint8", (len(data),), array.stype, data)
            message.content["arrays"] = ArrayRecord({"segment": broken})
        return super().deliver(message)


def beyond(data, listed):
    listed["blocks"] = [block + 1 for block in listed["blocks"]]
    return data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data, listed: data[:-1], "the final model must come in"),
        (lambda data, listed: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "CRC-32"),
        (beyond, "for blocks 0 to"),
    ],
    ids=["truncated", "flipped", "no such block"],
)
def test_a_bad_final_model_is_refused_and_its_client_left_out_by_name(tmp_path, change, words):
    before = kept_on_nodes()
    results = job(tmp_path / "run", *FEDERATED, clients=CLIENTS, grid=Hostile(change))
    found = own(results)
    assert set(found["left_out"]) == {"partition 2"}
    assert words in found["left_out"]["partition 2"]
    assert set(found["clients"]) == {"partition 0", "partition 1"}
    assert found["mean"]["tokens"] == 2 * 2 * 63
    assert kept_on_nodes() == before


def test_who_is_lost_on_the_way_or_sends_nonsense_is_left_out(tmp_path, monkeypatch):
    def disturbed(partition, reply):
        if partition == 0 and "received" in reply.content:
            return None
        if partition == 1 and "pruned-nll" in reply.content.metric_records.get("metrics", {}):
            reply.content["metrics"]["pruned-nll"] = math.nan
        return reply

    monkeypatch.setattr(strategies.evaluation, "MESSAGE_BYTES", 50_000)
    grid = LocalGrid(app, CLIENTS, tamper=disturbed)
    results = job(tmp_path / "run", *FEDERATED, "strategy.timeout=0.5", clients=CLIENTS, grid=grid)
    found = own(results)
    assert list(found["clients"]) == ["partition 2"]
    assert "no reply within 0.5 s" in found["left_out"]["partition 0"]
    assert "'pruned-nll' must be a finite number" in found["left_out"]["partition 1"]
    assert results["ledger"]["refused"] == {"partition 0": 1, "partition 1": 1}
    assert found["mean"] == found["clients"]["partition 2"]


def nodes(folder: Path, texts: list[str]) -> dict[int, dict[str, str | int]]:
    """Write each node's own texts: many to calibrate on, a tenth of them held out."""
    settings = {}
    for number, text in enumerate(texts):
        texts_of = folder / f"node {number}"
        texts_of.mkdir()
        rows = [json.dumps({"text": f"{text} {row}"}) for row in range(60)]
        (texts_of / "notes.jsonl").write_text("\n".join(rows))
        settings[number] = {
            "partition-id": number,
            "num-partitions": len(texts),
            "data-path": str(texts_of),
        }
    return settings


def test_nodes_measure_texts_that_never_leave_them_and_say_so_where_they_are_few(tmp_path):
    texts = ["The patient was seen at noon. " * 6, "x" * 8, "Return the path of the file. " * 6]
    grid = LocalGrid(app, CLIENTS, node_configs=nodes(tmp_path, texts))
    results = job(tmp_path / "run", *FEDERATED, "data=node", "pruner.seq_len=32", grid=grid)
    found = own(results)
    assert set(found["clients"]) == {"partition 0", "partition 2"}
    assert "does not fill one window of 64 tokens" in found["left_out"]["partition 1"]
    for message in grid.sent:
        assert "patient" not in str(message.content)
