"""The whole job in one process: real ServerApp code, real ClientApp, real model and texts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from client_app.app import app
from client_app.session import Session
from fedprune.config import config_from_overrides
from fedprune.data.partitions import partition_documents
from fedprune.data.samples import packed_samples
from fedprune.data.stdlib import stdlib_documents
from fedprune.errors import ConfigError, DataError, FedpruneError, QuorumError
from fedprune.models.embedded import demo_model_path
from fedprune.models.loading import load_model
from fedprune.seeds import derive_seed
from server_app import measure
from server_app.job import run_job
from tests.support.grid import LocalGrid
from tests.support.jobs import masks_of, whole_model
from tests.support.measuring import measure_quickly
from tests.support.slow_wanda import central

ROOT = Path(__file__).resolve().parents[2]
SMALL = "pruner.num_calibration_samples=4 pruner.seq_len=64 evaluation.max_windows=8"


def job(folder: Path, nodes=3, overrides="", grid=None, **shortcuts):
    grid = grid or LocalGrid(app, nodes)
    options = f"{SMALL} strategy.wait=1 strategy.min_clients=1 {overrides}"
    return run_job(grid, {"overrides": options, "output-dir": str(folder), **shortcuts}, 7)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        measure_quickly(patch, measure)
        return job(tmp_path_factory.mktemp("runs") / "run", overrides="evaluation.speed=true")


def test_exports_a_model_that_anyone_can_load(finished):
    model = AutoModelForCausalLM.from_pretrained(finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    out = model(**tokenizer("Return the", return_tensors="pt"))
    assert torch.isfinite(out.logits).all()
    dense = AutoModelForCausalLM.from_pretrained(demo_model_path())
    masks = masks_of(finished)
    for (block, name), mask in masks.items():
        weight = model.get_submodule(f"model.layers.{block}.{name}").weight.detach().numpy()
        before = dense.get_submodule(f"model.layers.{block}.{name}").weight.detach().numpy()
        assert np.array_equal(weight, np.where(mask, before, 0))
        assert (~mask).sum() == mask.size // 2
    pruned = {f"model.layers.{block}.{name}.weight" for block, name in masks}
    for name, tensor in model.state_dict().items():
        if name not in pruned:
            assert torch.equal(tensor, dense.state_dict()[name])


def test_masks_equal_a_plain_loop_of_votes_with_a_majority_floor(finished):
    """Clients one after another, hooks and sorts, no code of the pruners, walk or votes."""
    loaded = load_model(config_from_overrides([]).model)
    documents = stdlib_documents("train")
    votes: dict[tuple[int, str], np.ndarray] = {}
    for partition in range(3):
        share = partition_documents(
            documents, 3, partition, "by_group", derive_seed(0, "partition")
        )
        seed = derive_seed(0, "calibration", partition)
        samples = packed_samples(share, loaded.tokenizer, 4, 64, seed)
        for key, mask in central([one.tokens for one in samples]).items():
            votes[key] = votes.get(key, 0) + ~mask
    found = masks_of(finished)
    assert set(found) == set(votes)
    dense = whole_model().model
    for (block, name), counts in votes.items():
        weight = dense.get_submodule(f"model.layers.{block}.{name}").weight.detach().abs().numpy()
        decided = np.where(2 * counts > 3, counts, 0).reshape(-1)  # of three voters
        order = np.lexsort((np.arange(weight.size), weight.reshape(-1), -decided))
        mask = np.ones(weight.size, dtype=bool)
        mask[order[: weight.size // 2]] = False
        assert np.array_equal(found[block, name], mask.reshape(weight.shape))


@pytest.mark.parametrize("overrides", ["schedule.blocks_per_message=1", "strategy.window=1"])
def test_how_messages_are_cut_and_ordered_does_not_matter(finished, tmp_path, overrides):
    grid = LocalGrid(app, 3)
    grid.get_node_ids = lambda: [102, 100, 101]
    other = job(tmp_path / "run", overrides=overrides, grid=grid)
    first, second = masks_of(finished), masks_of(other)
    assert all(np.array_equal(first[key], second[key]) for key in first)


def flatten(value, prefix="") -> set[str]:
    if isinstance(value, dict):
        entries = value or {"nobody": 0}
        return {k for name, v in entries.items() for k in flatten(v, f"{prefix}.{name}")}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {key for item in value for key in flatten(item, f"{prefix}[]")}
    return {prefix.lstrip(".")}


def test_results_have_exactly_the_documented_keys(finished):
    results = json.loads((finished / "results.json").read_text())
    patterns = []
    for line in (ROOT / "docs" / "results.md").read_text().splitlines():
        if line.startswith("| `"):
            keys = re.findall(r"`([^`]+)`", line.split("|")[1])
            parent = keys[0].rsplit(".", 1)[0]
            patterns += [parent + key if key.startswith(".") else key for key in keys]
    matchers = {p: re.compile(re.escape(p).replace(r"\*", ".+")) for p in patterns}
    found = flatten(results) - {"strategy.nobody"}
    for key in found:
        assert any(m.fullmatch(key) for m in matchers.values()), f"undocumented: {key}"
    allowed_absent = {"ledger.refused.*", "perplexity.*.local_only"}
    experts = ("experts", "unseen", "few_tokens", "few")  # the demo model has none
    allowed_absent |= {f"experts.{key}" for key in experts}
    allowed_absent.add("strategy.client_weights.*")  # where clients do not weigh the same
    # Of runs that leave a smaller model, of mixtures of experts, of pooling for the worst served,
    # and of those that are compared with a model made without a client.
    of_others = ("smaller.", "strategy.experts.", "strategy.worst.")
    allowed_absent |= {p for p in patterns if p.startswith(of_others) or ".no_client" in p}
    for pattern, matcher in matchers.items():
        if pattern not in allowed_absent:
            assert any(matcher.fullmatch(key) for key in found), f"never written: {pattern}"


def test_results_figures(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["sparsity"]["overall"] == 0.5
    found = results["perplexity"]["stdlib"]
    local = found["local_only"]
    assert local["best"] <= local["mean"] <= local["worst"]
    assert found["dense"] < found["pruned"]
    assert found["dense"] < found["centralized"]
    for close in results["fidelity"]["stdlib"].values():
        assert 0 < close["kl"] < 3 and 0.3 < close["top1"] < 1
    served = results["speed"]
    assert served["pruned"]["model"] == str(finished / "model")
    assert (served["dense"]["prompt_ratio"], served["dense"]["generation_ratio"]) == (1, 1)
    assert results["sizes"]["base"] < served["dense"]["peak_bytes"]
    ledger = results["ledger"]
    assert ledger["bytes_up"] == sum(entry["bytes_up"] for entry in ledger["entries"])
    masks = [entry["bytes_up"] for entry in ledger["entries"] if entry["phase"] == "prune"]
    packed = results["sparsity"]["weights"] / 8
    assert all(packed < size < 1.1 * packed for size in masks)
    assert 0.5 < results["agreement"]["pairwise"] < 1


def test_masks_are_the_only_tensors_that_leave_a_client(tmp_path):
    seen = set()

    def watch(partition, reply):
        for record in reply.content.array_records.values():
            seen.update((array.dtype, array.stype) for array in record.values())
        return reply

    job(tmp_path / "run", nodes=1, grid=LocalGrid(app, 1, tamper=watch))
    assert seen == {("uint8", "fedprune.masks.v2")}


def test_client_that_raises_is_left_out_without_its_text(tmp_path, monkeypatch):
    real = Session.answers

    def fails(session, *request):
        if session.node.settings.partition_id == 1:
            raise ValueError("the patient's name")
        return real(session, *request)

    monkeypatch.setattr(Session, "answers", fails)
    folder = job(tmp_path / "run")
    text = (folder / "results.json").read_text()
    results = json.loads(text)
    assert results["ledger"]["refused"] == {"partition 1": 1}
    assert "ValueError on the node" in text and "patient" not in text


def no_model(folder: Path) -> bool:
    return not (folder / "model").exists() and not list(folder.glob(".model*"))


def test_too_few_clients_leave_a_failure_and_no_model(tmp_path):
    def silent(partition, reply):
        return None if "arrays" in reply.content and partition else reply

    grid = LocalGrid(app, 2, tamper=silent)
    with pytest.raises(QuorumError, match="asks for 2"):
        job(tmp_path / "run", grid=grid, overrides="strategy.min_clients=2 strategy.timeout=0.5")
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert "asks for 2" in failure["reason"] and failure["ledger"]["bytes_up"] > 0
    assert no_model(tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").exists()


def test_zero_clients(tmp_path):
    with pytest.raises(QuorumError, match="no node connected"):
        job(tmp_path / "run", nodes=0)
    assert no_model(tmp_path / "run")


def test_text_shorter_than_one_window(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("Too short.\n")
    with pytest.raises(FedpruneError) as caught:
        job(tmp_path / "run", data=str(text))
    assert isinstance(caught.value, QuorumError | DataError)
    assert no_model(tmp_path / "run")


def test_wrong_configuration_stops_before_a_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("server_app.job.load_model", lambda config: pytest.fail("loaded a model"))
    with pytest.raises(ConfigError, match="`sparsity`"):
        job(tmp_path / "run", overrides="sparsity=1.0")
    assert not (tmp_path / "run").exists()


def test_a_request_without_configuration_is_answered_with_an_error():
    grid = LocalGrid(app, 1)
    kinds = ("query.handshake", "query.fetch", "query.deliver", "train.prune", "evaluate.local")
    for kind in kinds:
        (identifier,) = grid.push_messages([Message(RecordDict(), 100, kind)])
        (reply,) = grid.pull_messages([identifier])
        assert reply.has_error() and "ReplyRefusedError" in reply.error.reason


def test_several_data_sets_are_measured_for_all_models_and_a_missing_one_is_left_out(tmp_path):
    (tmp_path / "notes.txt").write_text("Return the sum of the arguments as a float.\n" * 300)
    names = f"{tmp_path / 'notes.txt'},/nowhere.txt"
    overrides = f"evaluation.datasets={names} evaluation.seq_len=64 data.partition=linear"
    results = json.loads((job(tmp_path / "run", overrides=overrides) / "results.json").read_text())
    found = results["perplexity"]
    own, notes = found.values()
    assert list(found)[0] == "stdlib" and list(found)[1].endswith("notes")
    for figures in (own, notes):
        assert figures["dense"] < figures["pruned"]
        assert figures["centralized"] is not None
        assert len(figures["local_only"]["clients"]) == 3
    assert own["local_only"]["clients"] != notes["local_only"]["clients"]
    ids = [client["sample_ids"] for client in results["clients"]]
    assert len({name for client in ids for name in client}) == 3 * 4
    again = job(tmp_path / "again", overrides=overrides)
    assert [
        c["sample_ids"] for c in json.loads((again / "results.json").read_text())["clients"]
    ] == ids
