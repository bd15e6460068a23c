"""Collected column squares in the form of llama-imatrix, read back with llama.cpp's own package."""

from functools import partial

import numpy as np
import pytest
import torch

from fedprune.cli import main
from fedprune.errors import ConfigError
from fedprune.methods.imatrix import write_imatrix
from tests.support.architectures import tiny_model, token_samples
from tests.support.statistics import collected

gguf = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neox")
MIXTURES = ("mixtral", "qwen3_moe", "olmoe")


def read(path):
    """Return what llama.cpp's reader finds: keys, and tensor -> (sums, counts)."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {one.name: one for one in reader.tensors}
    assert all(one.tensor_type == gguf.GGMLQuantizationType.F32 for one in tensors.values())
    names = sorted({name.rpartition(".")[0] for name in tensors})
    assert tensors.keys() == {f"{name}.{part}" for name in names for part in ("in_sum2", "counts")}
    found = {n: (tensors[f"{n}.in_sum2"].data, tensors[f"{n}.counts"].data) for n in names}
    return keys, found


def clients(count=3, samples=4):
    return [token_samples(samples, 24, seed) for seed in range(count)]


@pytest.mark.parametrize("family", [*KNOWN, "phi", "falcon", "bloom"])
def test_every_matrix_of_a_family_has_its_sums_under_llama_cpp_s_name(tmp_path, family):
    loaded, texts = tiny_model(family), clients()
    folder = collected(tmp_path / "s", loaded, texts)
    shapes = loaded.layout.shapes()
    assert write_imatrix(folder, tmp_path / "i.gguf") == sum(map(len, shapes))
    keys, found = read(tmp_path / "i.gguf")
    assert keys["general.type"] == "imatrix" and keys["imatrix.datasets"] == ["text"]
    assert "general.architecture" not in keys
    # 3 clients x 4 samples x 24 tokens, in chunks of `pruner.seq_len` 128
    assert (keys["imatrix.chunk_count"], keys["imatrix.chunk_size"]) == (3, 128)
    widths = sorted(shape[1] for block in shapes for shape in block.values())
    assert sorted(sums.shape[1] for sums, _ in found.values()) == widths
    assert all(sums.shape[0] == 1 and counts.shape == (1, 1) for sums, counts in found.values())
    assert all(counts.item() == 3 * 4 * 24 for _, counts in found.values())


def test_sums_are_those_of_the_inputs(tmp_path):
    loaded, texts = tiny_model("llama"), clients()
    write_imatrix(collected(tmp_path / "s", loaded, texts), tmp_path / "i.gguf")
    expected = {}

    def add(name, module, args):
        squares = args[0].detach().double().reshape(-1, args[0].shape[-1]).square().sum(0)
        expected[name] = expected.get(name, 0) + squares

    layer = loaded.layout.blocks[1]
    for name, tensor in (("self_attn.k_proj", "attn_k"), ("mlp.down_proj", "ffn_down")):
        hook = partial(add, f"blk.1.{tensor}.weight")
        layer.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for sample in (one for samples in texts for one in samples):
            loaded.model(input_ids=sample[None], use_cache=False)
    _, found = read(tmp_path / "i.gguf")
    for name, sums in expected.items():
        np.testing.assert_allclose(found[name][0][0], sums.numpy(), rtol=1e-5)
    assert np.array_equal(found["blk.1.attn_k.weight"][0], found["blk.1.attn_q.weight"][0])


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_many_clients_write_the_bytes_that_one_with_all_texts_writes(tmp_path, family):
    loaded, texts = tiny_model(family), clients()
    everything = [one for samples in texts for one in samples]
    write_imatrix(collected(tmp_path / "a", loaded, [everything]), tmp_path / "one.gguf")
    write_imatrix(collected(tmp_path / "b", loaded, texts[::-1]), tmp_path / "many.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_have_a_row_each_of_the_tokens_routed_to_them(tmp_path, family):
    loaded, texts = tiny_model(family), clients()
    folder = collected(tmp_path / "s", loaded, texts)
    write_imatrix(folder, tmp_path / "i.gguf")
    _, found = read(tmp_path / "i.gguf")
    known = folder.linears(0, "columns")
    experts = sorted(n for n in known if ".experts." in n and n.endswith(".down_proj"))
    for part, tensors in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
        rows = [known[name.replace("down_proj", part)] for name in experts]
        for tensor in tensors:
            sums, counts = found[f"blk.0.ffn_{tensor}_exps.weight"]
            assert np.array_equal(sums, np.stack([one.sum_squares.numpy() for one in rows]))
            assert counts[:, 0].tolist() == [one.tokens for one in rows]
    chosen = loaded.model.config.num_experts_per_tok
    assert found["blk.0.ffn_down_exps.weight"][1].sum() == 3 * 4 * 24 * chosen
    assert found["blk.0.attn_q.weight"][1] == 3 * 4 * 24


@pytest.mark.parametrize("family", ["opt", "gpt_oss"])
def test_a_family_that_has_no_place_in_llama_cpp_s_table_is_refused(tmp_path, family):
    loaded = tiny_model(family)
    folder = collected(tmp_path / "s", loaded, clients(1))
    with pytest.raises(ConfigError, match=f"not written for the family '{family}', only for"):
        write_imatrix(folder, tmp_path / "i.gguf")
    assert not (tmp_path / "i.gguf").exists()


def test_statistics_that_no_importance_matrix_is_made_of(tmp_path):
    loaded = tiny_model("llama")
    scaled = collected(tmp_path / "a", loaded, clients(1), "strategy.pooling=scaled")
    with pytest.raises(ConfigError, match="Collect with strategy.pooling=tokens"):
        write_imatrix(scaled, tmp_path / "i.gguf")
    values = collected(tmp_path / "b", loaded, clients(1), "strategy.statistics=values")
    with pytest.raises(ConfigError, match="strategy.statistics=values,columns"):
        write_imatrix(values, tmp_path / "i.gguf")


def test_the_command_says_what_it_wrote_and_replaces_nothing(tmp_path, capsys):
    collected(tmp_path / "s", tiny_model("llama"), clients(1))
    words = ["export", str(tmp_path / "s"), "--imatrix", str(tmp_path / "i.gguf")]
    assert main(words) == 0
    assert "21 tensors" in capsys.readouterr().out
    assert main(words) == 2
    assert "must be a new file" in capsys.readouterr().err
