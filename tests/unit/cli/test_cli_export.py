"""`fedprune export`: what goes to the Hub."""

import shutil

import huggingface_hub
import pytest

from fedprune.cli import main
from fedprune.cli.export import model_files
from fedprune.models.export import export_model
from tests.support.architectures import tiny_model
from tests.support.hub import TOKEN, running_hub
from tests.support.masks import random_masks


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    loaded = tiny_model()
    export_model(loaded, random_masks(loaded), folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\ncard\n")
    return folder


@pytest.fixture
def run(exported, tmp_path):
    """Return a run's folder, with what must stay at home."""
    folder = tmp_path / "run"
    shutil.copytree(exported, folder / "model")
    for name in ("run.log", "config.yaml", "results.json", "failure.json"):
        (folder / name).write_text("secret")
        (folder / "model" / f"{name}.bak").write_text("secret")
    (folder / "model" / "notes").mkdir()
    (folder / "model" / "notes" / "config.json").write_text("secret")
    return folder


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_a_push_holds_the_model_and_nothing_else(run, exported, hub, capsys):
    assert main(["export", str(run), "--push-to-hub", "me/small"]) == 0
    assert f"{hub.address}/me/small/commit/" in capsys.readouterr().out
    assert hub.repositories == {"me/small": True}  # private
    files = hub.files["me/small"]
    assert files == {name: (exported / name).read_bytes() for name in model_files(exported)}
    assert {"config.json", "model.safetensors", "README.md", "fedprune/masks.safetensors"} <= set(
        files
    )
    assert hub.messages[0].startswith("Pruned with fedprune")


def test_a_public_repository(run, hub):
    assert main(["export", str(run), "--push-to-hub", "me/open", "--public"]) == 0
    assert hub.repositories == {"me/open": False}


def test_a_repository_that_exists_needs_a_word(run, hub, capsys):
    hub.repositories["me/there"] = True
    assert main(["export", str(run), "--push-to-hub", "me/there"]) == 1
    assert "it exists. Give another name, or add --existing" in capsys.readouterr().err
    assert hub.files == {}
    assert main(["export", str(run), "--push-to-hub", "me/there", "--existing"]) == 0
    assert "model.safetensors" in hub.files["me/there"]


def test_refusals_of_the_hub_say_what_to_do(run, hub, monkeypatch, capsys):
    assert main(["export", str(run), "--push-to-hub", "locked/x"]) == 1
    assert "may not write there" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["export", str(run), "--push-to-hub", "me/x"]) == 1
    assert "does not know the token. Log in again" in capsys.readouterr().err


def test_what_cannot_be_pushed_is_refused_before_any_work(run, monkeypatch, tmp_path, capsys):
    for name in ("nobody", "a/b/c", "a b/c"):
        assert main(["export", str(run), "--push-to-hub", name]) == 2
        assert f"takes 'owner/name', got '{name}'" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["export", str(run), "--push-to-hub", "me/x"]) == 2
    assert "needs a token of the Hub" in capsys.readouterr().err


def test_no_network(run, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["export", str(run), "--push-to-hub", "me/x"]) == 1
    assert "the Hub cannot be reached" in capsys.readouterr().err


def test_no_model(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--push-to-hub", "me/x"]) == 1
    assert "found no `config.json`" in capsys.readouterr().err
