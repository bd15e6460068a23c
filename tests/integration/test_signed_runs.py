"""Runs whose sites sign: whose signatures hold under a model or statistics, and whose not."""

import json
import shutil
from dataclasses import replace

import pytest

from client_app.app import app
from fedprune.cli import main
from fedprune.privacy.attestation import SIGNATURES, Signatures
from fedprune.results.provenance import PROVENANCE, SIGNATURES_OF_A_MODEL
from server_app.job import run_job
from tests.support.grid import LocalGrid
from tests.support.jobs import refusals
from tests.support.signing import signed_roster, signing_key, site_keys

SMALL = (
    "pruner.num_calibration_samples=2 pruner.seq_len=32 evaluation.max_windows=2 "
    "evaluation.centralized=false evaluation.local_only=false strategy.wait=1 "
    "strategy.min_clients=1"
)
SITES = ("north", "south", "east")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    keys = site_keys(SITES, folder)
    signed_roster(keys).write(folder / "roster.toml")
    return folder


def nodes(keys, sites=SITES):
    """East has no key."""
    return {
        number: {"partition-id": number, "num-partitions": len(sites), "site": site}
        | ({"signing-key": str(keys / f"{site}.key")} if site != "east" else {})
        for number, site in enumerate(sites)
    }


def run(folder, given, overrides="", **more):
    grid = LocalGrid(app, len(given), node_configs=given, **more)
    options = {"overrides": f"{SMALL} {overrides}", "output-dir": str(folder)}
    run_job(grid, options, 7)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, keys):
    return run(tmp_path_factory.mktemp("made") / "run", nodes(keys), "schedule=iterative")


@pytest.fixture(scope="module")
def other(tmp_path_factory, keys):
    return run(tmp_path_factory.mktemp("other") / "run", nodes(keys), "schedule=iterative seed=1")


def copied(made, tmp_path):
    return shutil.copytree(made / "model", tmp_path / "model")


def verify(capsys, *words):
    code = main(["verify", *map(str, words)])
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


def test_sites_sign_every_answer_and_the_model(made, keys, capsys):
    code, said = verify(capsys, made, "--roster", keys / "roster.toml")
    assert code == 0, said
    assert "'north' signed 6 answers, and this model." in said
    assert "'south' signed 6 answers, and this model." in said
    assert "'east' signed nothing of it." in said
    code, said = verify(capsys, made)
    assert code == 0 and said.count("the holder of SHA256:") == 2 and "--roster ROSTER" in said


def test_a_model_names_no_site_and_no_path(made, keys):
    text = (made / "model" / SIGNATURES_OF_A_MODEL).read_text()
    assert not any(site in text for site in SITES) and str(keys) not in text


def test_a_model_that_was_changed_with_its_provenance_is_signed_by_nobody(
    made, keys, tmp_path, capsys
):
    model = copied(made, tmp_path)
    told = json.loads((model / PROVENANCE).read_text())
    told["choices"] = [*told["choices"], "sparsity=0.1"]
    (model / PROVENANCE).write_text(json.dumps(told))
    code, said = verify(capsys, model, "--roster", keys / "roster.toml")
    assert code == 1
    assert said.count("did not sign this model: the signature is forged") == 2
    assert "signed 6 answers" not in said


def test_signatures_of_another_run_are_told(made, other, keys, tmp_path, capsys):
    model = copied(made, tmp_path)
    shutil.copy(other / "model" / SIGNATURES_OF_A_MODEL, model / SIGNATURES_OF_A_MODEL)
    code, said = verify(capsys, model, "--roster", keys / "roster.toml")
    assert code == 1 and "its signatures are of the run" in said
    # Called those of this run they are not signed.
    found = Signatures.read(model / SIGNATURES_OF_A_MODEL)
    job = json.loads((model / PROVENANCE).read_text())["job"]
    replace(found, job=job).write(model / SIGNATURES_OF_A_MODEL)
    code, said = verify(capsys, model, "--roster", keys / "roster.toml")
    assert code == 1 and "'north' did not sign 6 of the 6 answers" in said
    assert "'south' did not sign this model" in said


def test_strangers_forgers_and_missing_signatures_are_told(made, keys, tmp_path, capsys):
    model, roster = copied(made, tmp_path), ["--roster", keys / "roster.toml"]
    place = model / SIGNATURES_OF_A_MODEL
    whole = Signatures.read(place)
    north, south = whole.sites
    # Somebody else's signatures under north's name.
    replace(whole, sites={north: whole.sites[south]}).write(place)
    code, said = verify(capsys, model, *roster)
    assert code == 1 and "'north' did not sign 6 of the 6 answers" in said
    # A stranger's key.
    stranger = signing_key().public
    replace(whole, sites={stranger: whole.sites[south]}).write(place)
    code, said = verify(capsys, model, *roster)
    assert code == 1 and f"the holder of {stranger.fingerprint} is outside the roster" in said
    # One who was away at the end.
    replace(whole, sites={north: replace(whole.sites[north], results={})}).write(place)
    code, said = verify(capsys, model, *roster)
    assert code == 0 and "'north' signed 6 answers, and not this model." in said
    assert "'south' signed nothing of it." in said
    # One answer left out of what it signed is no forgery; one that was changed is.
    answers = whole.sites[north].answers
    forged = replace(answers[0], digests={"0": "0" * 64})
    wrong = replace(whole.sites[north], answers=(forged, *answers[1:]))
    replace(whole, sites={north: wrong}).write(place)
    code, said = verify(capsys, model, *roster)
    assert code == 1 and "'north' did not sign 1 of the 6 answers" in said
    # Nobody's answers, only the model.
    replace(whole, sites={north: replace(wrong, answers=())}).write(place)
    code, said = verify(capsys, model, *roster)
    assert code == 1 and "'north' signed no answer of the run" in said
    place.unlink()
    code, said = verify(capsys, model, *roster)
    assert code == 1 and "no site of the roster signed it" in said
    code, said = verify(capsys, model)
    assert code == 0 and "Unsigned" in said
    for text in ("{}", "[", '{"format":"fedprune-signatures","version":1,"job":"x","sites":[1]}'):
        place.write_text(text)
        code, said = verify(capsys, model)
        assert code == 1 and "is damaged" in said


def test_without_keys_it_says_unsigned(tmp_path, keys, capsys):
    made = run(tmp_path / "run", {0: {"partition-id": 0}, 1: {"partition-id": 1}})
    assert not (made / "model" / SIGNATURES_OF_A_MODEL).exists()
    code, said = verify(capsys, made)
    assert code == 0 and "Unsigned: no site has signed it." in said


def test_statistics_are_signed_and_models_of_them_are_held_against_that(tmp_path, keys, capsys):
    roster = ["--roster", keys / "roster.toml"]
    collected = run(tmp_path / "collected", nodes(keys), "strategy=collect")
    assert (collected / "statistics" / SIGNATURES).is_file()
    solve = ["solve", str(collected), "evaluation.max_windows=2", "evaluation.centralized=false"]
    assert main([*solve, f"output_dir={tmp_path / 'solved'}"]) == 0
    code, said = verify(capsys, tmp_path / "solved", collected, *roster)
    assert code == 0 and "'north' signed 1 answer, and these statistics." in said
    code, said = verify(capsys, tmp_path / "solved", *roster)
    assert code == 1 and "no site of the roster signed it" in said


def test_an_answer_that_is_not_signed_with_the_announced_key_is_refused(tmp_path, keys):
    def tamper(partition, reply):
        if partition == 0 and "signature" in reply.content:
            if reply.content["signature"]["signature"]:
                reply.content["signature"]["signature"] = bytes(64)
        if partition == 1 and "signature" in reply.content:
            del reply.content["signature"]
        return reply

    made = run(tmp_path / "run", nodes(keys), tamper=tamper)
    results = json.loads((made / "results.json").read_text())
    refused = refusals(results)
    assert len(refused) == 2
    assert all("is not signed with the key that it announced" in one for one in refused.values())
