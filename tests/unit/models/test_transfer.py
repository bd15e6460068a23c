"""A model's manifest and segments: what may travel, and that nothing else does."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from fedprune.errors import ModelError, WireError
from fedprune.models.embedded import demo_model_path
from fedprune.models.transfer import Manifest, ModelFile, Offer, may_travel

SEGMENT = 1 << 16


@pytest.fixture(scope="module")
def offer():
    return Offer.of(str(demo_model_path()), None, SEGMENT)


def entry(**changes) -> dict:
    data = b"x" * 5000
    digest = hashlib.sha256(data).hexdigest()
    return {"name": "model.safetensors", "size": 5000, "sha256": digest} | {
        "segments": [digest[:64], digest],
        **changes,
    }


def text(*files: dict, **changes) -> bytes:
    config = entry(name="config.json", size=10, segments=["a" * 64])
    content = {"format": "fedprune-model-1", "segment_bytes": 4096, "files": [config, *files]}
    return json.dumps(content | changes).encode()


def test_a_manifest_tells_every_byte_and_its_segments_are_the_files(offer):
    manifest = offer.manifest
    assert Manifest.read(manifest.text) == manifest
    assert hashlib.sha256(manifest.text).hexdigest() == manifest.digest
    found: dict[str, bytes] = {}
    for number, segment in enumerate(manifest.segments):
        data = offer.segment(number)
        assert len(data) == segment.size <= SEGMENT
        assert hashlib.sha256(data).hexdigest() == segment.sha256
        segment.check(data)
        found[segment.file.name] = found.get(segment.file.name, b"") + data
    folder = demo_model_path()
    assert found == {name: (folder / name).read_bytes() for name in found}
    # Not what only belongs to this project, and the large files last.
    assert list(found) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ]
    for file in manifest.files:
        assert hashlib.sha256(found[file.name]).hexdigest() == file.sha256


def test_the_same_files_have_the_same_manifest_wherever_they_lie(offer, tmp_path):
    for name, path in offer.paths.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "modeling.py").write_text("raise SystemExit")
    (tmp_path / "notes.txt").write_text("mine")
    assert Offer.of(str(tmp_path), None, SEGMENT).manifest.digest == offer.manifest.digest


def test_shards_travel_with_their_index(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(demo_model_path())
    model.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    names = {file.name for file in Offer.of(str(tmp_path / "shards"), None, SEGMENT).manifest.files}
    assert "model.safetensors.index.json" in names
    assert sum(name.endswith(".safetensors") for name in names) > 1


def test_a_snapshot_of_the_hub_is_sent_as_it_lies_in_the_cache(offer, tmp_path, monkeypatch):
    repository, commit = tmp_path / "models--org--name", "a" * 40
    shutil.copytree(demo_model_path(), repository / "blobs")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    for path in (repository / "blobs").iterdir():
        (repository / "snapshots" / commit / path.name).symlink_to(path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = Offer.of("org/name", None, SEGMENT)
    assert found.manifest == offer.manifest
    assert found.segment(0) == offer.segment(0)


def test_a_model_that_could_run_code_is_not_sent(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"`model.source` must be 'local'.*no safetensors weights"):
        Offer.of(str(tmp_path), None, SEGMENT)


def test_a_shard_of_an_odd_name_is_not_sent(tmp_path):
    (tmp_path / "sub").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "sub" / "weights.bin")
    index = {"weight_map": {"a": "sub/weights.bin"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="'weights.bin' among its weights"):
        Offer.of(str(tmp_path), None, SEGMENT)


def test_a_segment_that_was_changed_or_cut_is_refused(offer):
    segment, data = offer.manifest.segments[-1], offer.segment(len(offer.manifest.segments) - 1)
    for wrong in (data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:], b""):
        with pytest.raises(WireError, match="not what the model's manifest says"):
            segment.check(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "a/model.safetensors",
        "/model.safetensors",
        "..\\model.safetensors",
        ".safetensors",
        ".hidden.safetensors",
        "model.safetensors\n",
        "model.safetensors\0",
        "modeling_llama.py",
        "pytorch_model.bin",
        "training_args.pkl",
        "config.json/..",
        "CONFIG.JSON",
        "",
        "a" * 200 + ".safetensors",
    ],
)
def test_only_names_of_a_model_s_data_travel(name):
    assert not may_travel(name)
    with pytest.raises(WireError, match="may not travel"):
        Manifest.read(text(entry(name=name)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the manifest of the model is refused"),
        (b"[" * 100_000, "is refused"),
        (b"[]", "its format"),
        (text(entry(), format="fedprune-model-2"), "its format"),
        (text(entry(), more=1), "other keys"),
        (text(entry(), segment_bytes=True), "at most 64000000 bytes"),
        (text(entry(), segment_bytes=64_000_001), "at most 64000000 bytes"),
        (text(entry(), segment_bytes=1), "at most 64000000 bytes"),
        (text(entry(), files=[]), "1 to 2000 files"),
        (text(entry(), files=[entry()] * 2001), "1 to 2000 files"),
        (text(entry(), files=[entry()]), "a configuration and weights"),
        (text(), "a configuration and weights"),
        (text(entry(), entry()), "a name twice"),
        (text(entry(), entry(name="MODEL.safetensors")), "a name twice"),
        (text("model.safetensors"), "a name, a size and hashes"),
        (text(entry(size=0, segments=[])), "between 1 and"),
        (text(entry(size=-1)), "between 1 and"),
        (text(entry(size=5000.0)), "between 1 and"),
        (text(entry(size=1 << 43, segments=[])), "between 1 and"),
        (text(entry(segments=["a" * 64])), "a hash for each segment"),
        (text(entry(segments="ab")), "a hash for each segment"),
        (text(entry(segments=["a" * 64, "A" * 64])), "SHA-256"),
        (text(entry(sha256=None)), "SHA-256"),
    ],
)
def test_a_manifest_is_checked_in_everything(data, words):
    with pytest.raises(WireError, match=words):
        Manifest.read(data)


def test_the_last_segment_of_a_file_is_what_is_left():
    files = (ModelFile("a.safetensors", 10_000, "", ("1", "2", "3")), ModelFile("b", 1, "", ("4",)))
    found = [(p.file.name[0], p.start, p.size) for p in Manifest(4096, files).segments]
    assert found == [("a", 0, 4096), ("a", 4096, 4096), ("a", 8192, 1808), ("b", 0, 1)]
