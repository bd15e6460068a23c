"""The compact form: the same model, the same folder, and clear errors for what is damaged."""

import json
import shutil

import pytest
import torch
import transformers as hf

from fedprune.config.schema import ModelConfig
from fedprune.errors import ModelError
from fedprune.models.compact import load_compact, write_compact, write_dense
from fedprune.models.export import SIDECAR, export_model
from fedprune.models.loading import load_model
from fedprune.models.sidecar import read_sidecar, write_sidecar
from fedprune.wire.masks import BitMask
from tests.support.architectures import tiny_model, token_samples
from tests.support.masks import equal_bits, random_masks

SHARD = "compact-00001.safetensors"


def exported(folder, family="llama", dtype=torch.bfloat16):
    loaded = tiny_model(family, dtype)
    export_model(loaded, random_masks(loaded), folder)
    return folder


@pytest.fixture
def compact(tmp_path):
    write_compact(exported(tmp_path / "model"), tmp_path / "compact")
    return tmp_path / "compact"


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def change(folder, **entries):
    path = folder / "compact.index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt", "falcon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_model_is_the_dense_one_bit_for_bit_and_so_is_the_folder(tmp_path, family, dtype):
    dense = exported(tmp_path / "model", family, dtype)
    (dense / "README.md").write_text("card")
    write_compact(dense, tmp_path / "compact")
    model, tokenizer = load_compact(tmp_path / "compact")
    expected = hf.AutoModelForCausalLM.from_pretrained(dense)
    assert equal_bits(model.state_dict(), expected.state_dict())
    assert model.config.tie_word_embeddings == expected.config.tie_word_embeddings
    (sample,) = token_samples(1, 8)
    with torch.no_grad():
        logits = [m(input_ids=sample[None]).logits for m in (model, expected)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    assert tokenizer("w3 w99")["input_ids"] == [3, 99]
    write_dense(tmp_path / "compact", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(dense)


def test_tied_weights_stay_tied(tmp_path):
    write_compact(exported(tmp_path / "model", "gemma3"), tmp_path / "compact")
    model, _ = load_compact(tmp_path / "compact")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_zeros_that_survive_stay_in_the_masks(tmp_path):
    loaded = tiny_model()
    weight = loaded.weight(0, "mlp.up_proj")
    weight[:, ::2] = 0
    masks = {0: {"mlp.up_proj": BitMask.from_bool(torch.ones(weight.shape, dtype=bool).numpy())}}
    export_model(loaded, masks, tmp_path / "model")
    write_compact(tmp_path / "model", tmp_path / "compact")
    write_dense(tmp_path / "compact", tmp_path / "again")
    assert read_sidecar(tmp_path / "again" / SIDECAR) == masks


def test_a_model_without_a_sidecar_is_packed_by_its_zeros(tmp_path):
    dense = exported(tmp_path / "model")
    size = (dense / "model.safetensors").stat().st_size
    shutil.rmtree(dense / "fedprune")
    write_compact(dense, tmp_path / "compact")
    assert (tmp_path / "compact" / SHARD).stat().st_size < 0.65 * size
    expected = hf.AutoModelForCausalLM.from_pretrained(dense).state_dict()
    assert equal_bits(load_compact(tmp_path / "compact")[0].state_dict(), expected)


def test_weights_that_a_mask_misses_are_kept_and_the_mask_is_not(tmp_path):
    dense = exported(tmp_path / "model")
    masks = read_sidecar(dense / SIDECAR)
    first = masks[0]["mlp.up_proj"]
    masks[0]["mlp.up_proj"] = BitMask.from_bool(~first.to_bool())
    write_sidecar(dense / SIDECAR, masks, "model.layers")
    write_compact(dense, tmp_path / "compact")
    expected = hf.AutoModelForCausalLM.from_pretrained(dense).state_dict()
    assert equal_bits(load_compact(tmp_path / "compact")[0].state_dict(), expected)
    write_dense(tmp_path / "compact", tmp_path / "again")
    assert set(read_sidecar(tmp_path / "again" / SIDECAR)[0]) == set(masks[0]) - {"mlp.up_proj"}


def test_weights_that_are_not_finite_stay_as_they_are(tmp_path):
    loaded = tiny_model()
    loaded.weight(0, "mlp.up_proj")[0, 0] = float("nan")
    loaded.weight(1, "mlp.up_proj")[0, 0] = float("inf")
    export_model(loaded, {}, tmp_path / "model")
    write_compact(tmp_path / "model", tmp_path / "compact")
    expected = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert equal_bits(load_compact(tmp_path / "compact")[0].state_dict(), expected)


def test_large_models_are_sharded_and_equal_models_give_equal_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("fedprune.models.packing._SHARD_BYTES", 5_000)
    dense = exported(tmp_path / "model")
    write_compact(dense, tmp_path / "one")
    write_compact(dense, tmp_path / "two")
    assert len(list((tmp_path / "one").glob("compact-*.safetensors"))) > 3
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    expected = hf.AutoModelForCausalLM.from_pretrained(dense).state_dict()
    assert equal_bits(load_compact(tmp_path / "one")[0].state_dict(), expected)


def test_a_compact_folder_is_a_model_to_every_command(compact, tmp_path):
    loaded = load_model(ModelConfig("hf", str(compact), None, "float32"))
    dense = load_model(ModelConfig("hf", str(tmp_path / "model"), None, "float32"))
    assert loaded.names() == dense.names()
    for name in loaded.names():
        assert loaded.tensor(name).dtype == torch.float32
        assert torch.equal(loaded.tensor(name), dense.tensor(name))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": "other"}, "`format` must be 'fedprune-compact', got 'other'"),
        ({"version": 2}, "`version` must be 1, got 2"),
        ({"files": ["../compact-00001.safetensors"]}, "`files` does not list"),
        ({"files": []}, "`files` does not list"),
        ({"files": ["compact-00002.safetensors"]}, "'compact-00002.safetensors' is missing"),
        ({"packed": {"x": 1}}, "`packed` is not a table of bool"),
        ({"checksums": []}, "`checksums` is not a table of int"),
        ({"packed": {}}, "its index and its files differ"),
        ({"packed": {"model.norm.weight": True}}, "names a tensor twice"),
    ],
)
def test_an_index_that_cannot_be_right_is_refused(compact, entries, message):
    change(compact, **entries)
    with pytest.raises(ModelError, match=message):
        load_compact(compact)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "3"])
def test_an_index_that_is_none_is_refused(compact, text):
    (compact / "compact.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"damaged: 'compact.index.json' cannot be read"):
        load_compact(compact)


def test_an_index_that_packs_what_cannot_be_packed_is_refused(compact):
    index = json.loads((compact / "compact.index.json").read_text())
    name = "model.norm.weight"
    checksums = {key: value for key, value in index["checksums"].items() if key != name}
    change(compact, packed=index["packed"] | {name: True}, checksums=checksums)
    with pytest.raises(ModelError, match="'model.norm.weight' has type"):
        load_compact(compact)


def test_a_folder_of_another_architecture_is_refused(compact):
    config = json.loads((compact / "config.json").read_text())
    (compact / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ModelError, match=r"config.json and its index differ in model.layers.2"):
        load_compact(compact)
    (compact / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match="mlp"):
        load_compact(compact)


def test_every_part_of_a_shard_is_guarded(compact):
    whole = (compact / SHARD).read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole), 997):
        broken = bytearray(whole)
        broken[place] ^= 1
        (compact / SHARD).write_bytes(broken)
        with pytest.raises(ModelError, match="damaged"):
            load_compact(compact)
    (compact / SHARD).write_bytes(whole[:-1])
    with pytest.raises(ModelError, match="truncated"):
        load_compact(compact)


def test_ordinary_folders_and_taken_ones_are_refused(compact, tmp_path):
    with pytest.raises(ModelError, match="no model in compact form"):
        load_compact(tmp_path / "model")
    with pytest.raises(ModelError, match="no model in compact form"):
        write_dense(tmp_path / "model", tmp_path / "new")
    with pytest.raises(ModelError, match="compact form already"):
        write_compact(compact, tmp_path / "new")
    with pytest.raises(ModelError, match="not an empty folder"):
        write_compact(tmp_path / "model", compact)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "compact"}
