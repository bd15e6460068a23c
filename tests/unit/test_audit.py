"""The audit on real texts and models: attacks succeed where nothing protects, and say where not."""

import json

import numpy as np
import pytest
import torch

from fedprune import audit as module
from fedprune.audit import audit
from fedprune.cli import main
from fedprune.config import config_from_overrides
from fedprune.data.clients import client_samples
from fedprune.data.texts import load_documents
from fedprune.methods import public_text
from fedprune.models.loading import load_model
from fedprune.pruning.cosines import UNIT
from fedprune.pruning.kinds import find_kind
from tests.support.architectures import tiny_model
from tests.support.folders import save_folder
from tests.support.mixtures import mixture_folder

FEW = ("federation.num_clients=3", "pruner.num_calibration_samples=1", "pruner.seq_len=32")
SAFE = ("strategy=fedstats", "schedule.prefix=dense", "evaluation.local_only=false")
MORE = (
    "federation.num_clients=4",
    "pruner.num_calibration_samples=32",
    "pruner.seq_len=16",
    "data.partition=iid",  # so that others' texts are of the kind: only membership tells them apart
)


@pytest.fixture(scope="module", autouse=True)
def short_text():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public_text, "_SAMPLES", 8)
        patch.setattr(public_text, "_ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def few(short_model):
    return audit(config_from_overrides([short_model, *FEW]))


def test_the_words_of_a_small_set_are_recovered_from_every_payload(few):
    one = {release.what: release for release in few.releases}
    masks, sums = one["the masks of one client"], one["the sums of one client"]
    moments = one["the second moments of one client"]
    assert masks.sent_by == ("FedPrLLM", "FedSpaLLM")
    assert sums.sent_by == ("Collect", "FedStats")
    assert "FedHessian" in moments.sent_by
    for payload in (masks, sums, moments):
        assert payload.words.recall > 0.95 and payload.words.precision > 0.95
        assert payload.words.guess_recall < 0.6
        assert payload.words.distinct == few.releases[0].words.distinct > 10
    # Public text's first inputs say no more than anybody could, with noise or without.
    for way in ("with noise (epsilon 8)", "the first inputs public text's"):
        found = one[f"the sums of one client {way}".replace(" the first", ", the first")]
        assert found.words.recall < 0.6 < sums.words.recall
        assert found.sent_by == ()
    pooled = one["the sums over 3 clients"]
    assert pooled.sent_by == () and pooled.words.distinct > sums.words.distinct


def test_what_blocks_tell_of_their_own_is_attacked_too(few):
    one = {release.what: release for release in few.releases}
    assert one["the sums of cosines of one client"].sent_by == ("Depth",)
    assert "the sums of cosines over 3 clients with noise (epsilon 8)" in one
    assert not any("experts" in what for what in one)  # the model has none


@pytest.mark.slow
def test_of_a_mixture_the_sums_of_experts_are_attacked(tmp_path):
    found = audit(config_from_overrides([f"model={mixture_folder(tmp_path / 'mixture')}", *MORE]))
    one = {release.what: release for release in found.releases}
    plain = one["the sums of experts of one client"]
    assert plain.sent_by == ("FedExperts",) and plain.words is plain.norms is None
    assert plain.membership.auc > plain.guess + 0.03
    noisy = one["the sums of experts of one client with noise (epsilon 8)"].membership
    assert 0 <= noisy.low <= noisy.auc <= noisy.high <= 1


def test_what_is_attacked_is_what_clients_send():
    config = config_from_overrides(FEW)
    loaded = load_model(config.model)
    documents = load_documents(config.data, "train")
    samples = [one.tokens for one in client_samples(config, documents, loaded.tokenizer, 0, 3)]
    bench, kind = module._Bench(config, loaded), find_kind("cosines")
    squares, measures = bench.squares(samples), bench.measures(kind, samples)
    walk = bench.walk(samples)
    for block in walk.dense_blocks():
        arrays = walk.observe((), [kind]).block["cosines"]
        apart = int(arrays["tokens"][0]) * UNIT - int(arrays["sums"][0])
        rows = measures[block, ("cosines/over_1",)]
        assert rows.shape == (len(samples), 1)
        assert rows.sum() == pytest.approx(apart, rel=1e-5)
        for name, known in walk.collect("columns").items():
            (rows,) = [
                found for key, found in squares.items() if key[0] == block and name in key[1]
            ]
            assert np.allclose(rows.sum(0), known.sum_squares, rtol=1e-5)


def noisy_and_plain(epsilon: str):
    found = audit(config_from_overrides([*MORE, f"privacy.epsilon={epsilon}", *SAFE]))
    one = {release.what: release for release in found.releases}
    return one[f"the sums of one client with noise (epsilon {epsilon})"], one[
        "the sums of one client"
    ]


@pytest.mark.slow
def test_noise_hides_norms_and_who_was_there(monkeypatch):
    # Noise is the operating system's. In 50 runs the area was 0.480, with a standard deviation of
    # 0.004, and the norms' error never below 0.372, which public text alone has: the limits are 40
    # deviations away, and the error's cannot be reached.
    noisy, plain = noisy_and_plain("0.1")
    assert plain.membership.auc > 0.9
    # Without any of the samples in the sums the attack says so much: the texts differ by site.
    assert plain.membership.auc > plain.guess + 0.15
    assert noisy.membership.auc < 0.65
    assert noisy.norms.error > 0.1
    # Without noise, and so without the smoothing that its width asks for, both are told again.
    monkeypatch.setattr(module, "discrete_gaussian", lambda n, width: np.zeros(n, np.int64))
    smoothing = "fedprune.methods.noisy.estimate"
    monkeypatch.setattr(smoothing, lambda sums, deviation, like=None: np.maximum(sums, 0.0))
    bare, _ = noisy_and_plain("0.1")
    assert bare.membership.auc > 0.75
    assert bare.norms.error < 0.1


def test_norms_behind_masks_are_told_closely(few):
    for one in few.releases:
        if "noise" in one.what and "cosines" not in one.what:
            assert one.norms.error > 0.1
        elif "masks" in one.what:
            assert one.norms.error < 0.05 and one.norms.correlation > 0.98
        else:
            assert one.norms is None


def test_a_known_sample_is_told_from_others(short_model):
    found = audit(config_from_overrides([short_model, *MORE]))
    one = {release.what: release.membership for release in found.releases}
    assert one["the sums of one client"].auc > 0.9
    assert one["the masks of one client"].auc > 0.8
    for known in one.values():
        assert 0 <= known.low <= known.auc <= known.high <= 1
    assert one["the sums over 4 clients"].auc < one["the sums of one client"].auc
    # In 50 runs 0.585 with a standard deviation of 0.009; 0.78 if noise is left out.
    assert one["the sums of one client with noise (epsilon 8)"].auc < 0.7


def test_a_client_alone_and_the_same_twice(short_model):
    lone = ("federation.num_clients=1", "strategy.min_clients=1", short_model, *FEW[1:])
    first, second = (audit(config_from_overrides(lone)).to_dict() for _ in range(2))
    for told in (first, second):  # noise is never the same
        told["releases"] = [one for one in told["releases"] if "noise" not in one["what"]]
    assert first == second
    assert first["clients"] == 1
    assert all("of one client" in one["what"] for one in first["releases"])


def test_a_model_whose_inputs_depend_on_places_has_no_bag_of_words(tmp_path):
    save_folder(tiny_model("opt"), tmp_path / "opt")
    text = " ".join(f"w{number % 90}" for number in range(4000))
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "other.txt").write_text(" ".join(reversed(text.split())))
    config = config_from_overrides(
        [
            f"model={tmp_path / 'opt'}",
            f"data={tmp_path / 'text.txt'}",
            "federation.num_clients=1",
            "strategy.min_clients=1",
            "pruner.num_calibration_samples=2",
            "pruner.seq_len=16",
            f"data.heldout_path={tmp_path / 'other.txt'}",
        ]
    )
    found = audit(config)
    assert {one.words for one in found.releases} == {None}
    assert "depends on a token's place" in found.notes[0]
    assert not any("moments" in one.what for one in found.releases)


def test_too_little_text_to_compare_with_is_refused(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Return the path of the file. " * 60)
    (tmp_path / "b.txt").write_text("Return the path of the file. ")
    command = ["audit", f"data={tmp_path / 'a.txt'}", f"data.heldout_path={tmp_path / 'b.txt'}"]
    assert main([*command, "federation.num_clients=1", *FEW[1:]]) == 1
    assert "to compare with" in capsys.readouterr().err


def test_page_figures_and_table(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fedprune.cli.audit.audit", lambda _: few)
    folder = tmp_path / "new" / "audit"
    assert main(["audit", "--output", str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "FedPrLLM" in shown and "what releases tell" in shown
    told = json.loads((folder / "audit.json").read_text())
    assert told == json.loads(json.dumps(few.to_dict()))
    page = (folder / "audit.html").read_text()
    assert "<script" not in page and "default-src 'none'" in page
    for words in told["sends"].values():
        assert words["label"] in page
    assert main(["audit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told


def test_a_folder_that_cannot_be_made_is_refused_before_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fedprune.cli.audit.audit", lambda _: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    assert main(["audit", "--output", str(tmp_path / "file" / "x")]) == 2
    assert "--output" in capsys.readouterr().err


def test_rows_of_samples_cannot_be_sent():
    kind = module.RowsKind()
    recording = kind.start(3)
    recording.add(torch.ones(2, 4, 3))
    with pytest.raises(RuntimeError, match="not sent"):
        kind.arrays(recording.close())
