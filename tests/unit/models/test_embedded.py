"""The shipped model: unpacked once, refused when damaged, and a real language model."""

import json
import math
import shutil
import stat
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedprune.data.stdlib import stdlib_documents
from fedprune.errors import ModelError
from fedprune.models import embedded
from fedprune.models.embedded import demo_model_path

SEQ_LEN = 128
WINDOWS = 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def shipped(tmp_path, cache, monkeypatch):
    """Put a copy of the shipped files, free to be damaged, in their place."""
    copy = tmp_path / "demo"
    shutil.copytree(embedded.SHIPPED, copy)
    monkeypatch.setattr(embedded, "SHIPPED", copy)
    return copy


def edit_weights(folder: Path, change: dict[str, object]) -> None:
    document = json.loads((folder / "weights.json").read_text())
    (folder / "weights.json").write_text(json.dumps(document | change))


def heldout_tokens(tokenizer: object) -> torch.Tensor:
    """Return windows spread over the whole held-out split, shape (WINDOWS, SEQ_LEN)."""
    flat: list[int] = []
    for document in stdlib_documents("heldout"):
        flat += [*tokenizer(document.text)["input_ids"], tokenizer.eos_token_id]
    whole = torch.tensor(flat)[: len(flat) // SEQ_LEN * SEQ_LEN].view(-1, SEQ_LEN)
    return whole[:: len(whole) // WINDOWS][:WINDOWS]


def test_perplexity_is_a_fifth_of_the_unigram_model_or_better(cache):
    path = demo_model_path()
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    counts = torch.ones(model.config.vocab_size, dtype=torch.float64)
    for document in stdlib_documents("train"):
        ids = torch.tensor([*tokenizer(document.text)["input_ids"], tokenizer.eos_token_id])
        counts += torch.bincount(ids, minlength=len(counts))
    windows = heldout_tokens(tokenizer)

    with torch.no_grad():
        logits = model(input_ids=windows).logits[:, :-1]
    targets = windows[:, 1:].flatten()
    dense = math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).item())
    unigram = math.exp(-(counts / counts.sum()).log()[targets].mean().item())

    assert dense <= unigram / 5
    recorded = json.loads((path / "training.json").read_text())
    assert unigram == pytest.approx(recorded["unigram_perplexity"], rel=0.2)
    assert dense == pytest.approx(recorded["heldout_perplexity"][str(SEQ_LEN)], rel=0.2)


def test_folder_is_an_ordinary_float32_checkpoint(cache):
    path = demo_model_path()
    assert path.parent == cache / "models"
    assert {file.name for file in path.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    model, loading = AutoModelForCausalLM.from_pretrained(
        path, local_files_only=True, output_loading_info=True
    )
    assert model.dtype == torch.float32
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 1_600_000


@pytest.mark.parametrize("text", ["def f(x):\n\treturn x\n", "  two spaces", "naïve → ☃"])
def test_tokenizer_loads_as_it_was_trained(cache, text):
    path = demo_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    ids = tokenizer(text)["input_ids"]
    assert ids == Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids
    assert tokenizer.decode(ids) == text


def test_second_call_reuses_the_folder(cache):
    first = demo_model_path()
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert demo_model_path() == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert stat.S_IMODE(first.stat().st_mode) == 0o755


def test_other_shipped_files_get_another_folder(shipped):
    first = demo_model_path()
    (shipped / "training.json").write_text("{}")
    assert demo_model_path() != first


def test_processes_that_start_together_agree(cache):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        paths = [task.result() for task in [pool.submit(demo_model_path) for _ in range(4)]]
    assert len(set(paths)) == 1
    assert [folder.name for folder in paths[0].parent.iterdir()] == [paths[0].name]


def test_losing_the_race_keeps_the_winners_folder(cache, monkeypatch):
    save = embedded.save_file

    def overtaken(*args: object, **kwargs: object) -> None:
        save(*args, **kwargs)
        monkeypatch.setattr(embedded, "save_file", save)
        demo_model_path()  # another process finishes first

    monkeypatch.setattr(embedded, "save_file", overtaken)
    path = demo_model_path()
    assert [folder.name for folder in path.parent.iterdir()] == [path.name]
    AutoModelForCausalLM.from_pretrained(path, local_files_only=True)


def with_another_digit(tensors):
    entry = tensors["model.norm.weight"]
    other = "A" if entry["data"][0] != "A" else "B"
    return tensors | {"model.norm.weight": entry | {"data": other + entry["data"][1:]}}


def with_other_names(tensors):
    return {name.replace("q_proj", "x_proj"): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [with_another_digit, with_other_names])
def test_changed_weights_are_refused(shipped, cache, change):
    document = json.loads((shipped / "weights.json").read_text())
    edit_weights(shipped, {"tensors": change(document["tensors"])})
    with pytest.raises(ModelError, match=r"sha256.*Reinstall fedprune"):
        demo_model_path()
    assert not list(cache.rglob("*"))


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"tensors": {"a": {"dtype": "float64", "shape": [1], "data": ""}}},
        {"tensors": {"a": {"dtype": "float16", "shape": [1], "data": "@@"}}},
        {"tensors": {"a": {"dtype": "float16", "shape": [3], "data": "AAAA"}}},
        {"tensors": {"a": {"shape": [1], "data": "AAA="}}},
        {"tensors": []},
    ],
)
def test_malformed_weights_are_refused(shipped, change):
    edit_weights(shipped, change)
    with pytest.raises(ModelError, match="Reinstall fedprune"):
        demo_model_path()


def test_truncated_weights_are_refused(shipped):
    content = (shipped / "weights.json").read_bytes()
    (shipped / "weights.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"weights\.json.*Reinstall fedprune"):
        demo_model_path()


def test_missing_file_is_refused(shipped):
    (shipped / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json.*Reinstall fedprune"):
        demo_model_path()


def test_unwritable_cache_names_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="FEDPRUNE_HOME"):
        demo_model_path()


def test_only_small_json_files_are_shipped():
    files = list(embedded.SHIPPED.iterdir())
    assert {file.name for file in files} == {*embedded.COPIED, embedded.WEIGHTS}
    assert sum(file.stat().st_size for file in files) < 4_500_000
