"""`fedprune export`: both forms from the command line, and what goes to the Hub."""

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


def test_there_and_back_again(run, exported, tmp_path, capsys):
    compact, dense = tmp_path / "compact", tmp_path / "dense"
    assert main(["export", str(run), "--compact", str(compact)]) == 0
    assert "of weights became" in capsys.readouterr().out
    assert main(["export", str(compact), "--dense", str(dense)]) == 0
    for name in model_files(exported):
        assert (dense / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.parametrize("arguments", [[], ["--compact", "a", "--dense", "b"]])
def test_exactly_one_form_or_a_push(run, capsys, arguments):
    assert main(["export", str(run), *arguments]) == 2
    assert "one of --compact OUT and --dense OUT, or --push-to-hub REPO" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--public", "--existing"])
def test_how_to_push_needs_where_to(run, tmp_path, capsys, option):
    assert main(["export", str(run), "--compact", str(tmp_path / "compact"), option]) == 2
    assert "give --push-to-hub REPO" in capsys.readouterr().err
    assert not (tmp_path / "compact").exists()


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


def test_the_compact_form_is_pushed_where_both_are_asked_for(run, hub, tmp_path):
    arguments = ["--compact", str(tmp_path / "c"), "--push-to-hub", "me/compact", "--public"]
    assert main(["export", str(run), *arguments]) == 0
    assert hub.repositories == {"me/compact": False}
    names = set(hub.files["me/compact"])
    assert {"compact-00001.safetensors", "compact.index.json", "config.json"} <= names
    assert not any(name.endswith("model.safetensors") for name in names)


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
    out = tmp_path / "out"
    for name in ("nobody", "a/b/c", "a b/c"):
        arguments = ["--compact", str(out), "--push-to-hub", name]
        assert main(["export", str(run), *arguments]) == 2
        assert f"takes 'owner/name', got '{name}'" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["export", str(run), "--compact", str(out), "--push-to-hub", "me/x"]) == 2
    assert "needs a token of the Hub" in capsys.readouterr().err
    assert not out.exists()


def test_no_network(run, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["export", str(run), "--push-to-hub", "me/x"]) == 1
    assert "the Hub cannot be reached" in capsys.readouterr().err


def test_no_model(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--compact", str(tmp_path / "c")]) == 1
    assert "found no `config.json`" in capsys.readouterr().err
