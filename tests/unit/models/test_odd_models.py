"""Model folders and models in Python that tools make and that are not quite plain."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedprune.api import prune_locally
from fedprune.errors import ModelError
from fedprune.evaluation.perplexity import perplexity
from fedprune.models.architecture import asked_blocks
from fedprune.models.export import export_model
from fedprune.models.loading import loaded_from, model_shapes
from tests.support.architectures import tiny_model, token_samples
from tests.support.folders import load_folder, model_config, save_folder
from tests.support.masks import equal_bits, random_masks

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path):
    """Return a small Llama's folder, head and embedding apart."""
    return save_folder(tiny_model("llama"), tmp_path / "base")


def configure(folder, **changes):
    found = json.loads((folder / "config.json").read_text()) | changes
    known = {key: value for key, value in found.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(known))


def store(folder, change):
    state = change(load_file(folder / "model.safetensors"))
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def theirs(folder, sample):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(sample[None]).logits


def export(loaded, folder):
    export_model(loaded, random_masks(loaded), folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)


def nll(loaded, sample):
    return perplexity(loaded, sample[None]).nll


def nll_of(logits, sample):
    return float(torch.nn.functional.cross_entropy(logits[0, :-1].float(), sample[1:]))


def lora(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    chosen = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return get_peft_model(model, chosen)


@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_is_refused_with_how_to_merge_it(folder, alone):
    lora(folder).save_pretrained(folder)
    if alone:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    for use in (load_folder, lambda path: model_shapes(model_config(path))):
        with pytest.raises(ModelError, match="adapter.*merge_and_unload"):
            use(folder)


def test_an_adapter_in_python_is_refused_and_a_merged_one_is_not(folder):
    wrapped, tokenizer = lora(folder), AutoTokenizer.from_pretrained(folder)
    for model in (wrapped, wrapped.base_model.model):
        with pytest.raises(ModelError, match="not merged.*merge_and_unload"):
            loaded_from(model, tokenizer)
    merged = loaded_from(wrapped.merge_and_unload(), tokenizer)
    assert set(merged.layout.linears(0)) == set(load_folder(folder).layout.linears(0))


def test_wrappers_are_taken_off(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for wrapped in (torch.compile(model), torch.nn.DataParallel(model)):
        assert loaded_from(wrapped, tokenizer).model is model


def pruned_by_torch(model):
    prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5)
    return model


def parametrised(model):
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pruned_by_torch, r"layers\.0\.mlp\.up_proj.*prune\.remove"),
        (parametrised, r"layers\.0\.mlp\.up_proj.*remove_parametrizations"),
        (lambda model: model.model, "no head.*AutoModelForCausalLM"),
        (lambda model: model.to("meta"), "is on 'meta'.*device_map"),
        (lambda model: torch.nn.Linear(2, 2), "a model of transformers was expected"),
    ],
)
def test_what_is_not_plain_in_python_is_refused(folder, change, message):
    model = change(AutoModelForCausalLM.from_pretrained(folder))
    with pytest.raises(ModelError, match=message):
        loaded_from(model, AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("kept", [EMBEDDING, HEAD])
def test_of_a_tied_pair_either_may_be_stored_alone(folder, tmp_path, kept):
    configure(folder, tie_word_embeddings=True)
    gone = HEAD if kept == EMBEDDING else EMBEDDING
    store(folder, lambda state: {n: t for n, t in state.items() if n != gone})
    (sample,) = token_samples(1, 8)
    expected = theirs(folder, sample)
    loaded = load_folder(folder)
    assert nll(loaded, sample) == pytest.approx(nll_of(expected, sample))
    assert equal_bits({"head": loaded.tensor(HEAD)}, {"head": loaded.tensor(EMBEDDING)})
    again, report = export(loaded, tmp_path / "out")
    assert not report["missing_keys"] and again.config.tie_word_embeddings
    assert torch.equal(again.lm_head.weight, loaded.tensor(HEAD))


def test_a_stored_head_that_differs_counts_and_the_export_says_so(folder, tmp_path, caplog):
    configure(folder, tie_word_embeddings=True)
    (sample,) = token_samples(1, 8)
    expected = theirs(folder, sample)  # the library does not tie them, either
    loaded = load_folder(folder)
    assert "differs from the embedding" in caplog.text
    assert nll(loaded, sample) == pytest.approx(nll_of(expected, sample))
    again, _ = export(loaded, tmp_path / "out")
    assert again.config.tie_word_embeddings is False
    assert torch.equal(again.lm_head.weight, loaded.tensor(HEAD))
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )


def test_a_head_that_was_untied_in_python_is_exported(folder, tmp_path):
    configure(folder, tie_word_embeddings=True)
    store(folder, lambda state: {n: t for n, t in state.items() if n != HEAD})
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    loaded = loaded_from(model, AutoTokenizer.from_pretrained(folder))
    again, report = export(loaded, tmp_path / "out")
    assert not report["missing_keys"] and again.config.tie_word_embeddings is False
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    "settings",
    [
        {"pad_token_id": -1, "bos_token_id": 0, "eos_token_id": 1},
        {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
        {"temperature": "hot"},
    ],
)
def test_generation_settings_are_copied_as_they_are(folder, tmp_path, caplog, settings):
    (folder / "generation_config.json").write_text(json.dumps(settings))
    export(load_folder(folder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == settings
    assert "exported as it is, though not valid" in caplog.text


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_generation_settings_that_cannot_be_read_are_named_at_the_start(folder, content):
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match="generation_config.json' cannot be read.*delete it"):
        load_folder(folder)


@pytest.mark.parametrize(
    "flags",
    [
        {"return_dict": False},
        {"output_attentions": True, "attn_implementation": "eager"},
        {"output_hidden_states": True},
        {"use_cache": True, "return_dict": False, "output_hidden_states": True},
    ],
)
def test_flags_about_the_output_change_nothing(folder, flags):
    (sample,) = token_samples(1, 8)
    expected = nll(load_folder(folder), sample)
    configure(folder, **flags)
    assert nll(load_folder(folder), sample) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("auto", torch.float32), ("torch.bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_dtypes_as_tools_write_them(folder, written, expected):
    configure(folder, dtype=..., torch_dtype=written)
    assert load_folder(folder).model.dtype == expected
    assert model_shapes(model_config(folder))


def test_a_dtype_that_is_none_is_refused(folder):
    configure(folder, dtype="float31")
    with pytest.raises(ModelError, match="dtype 'float31'"):
        load_folder(folder)


def test_without_a_dtype_it_is_that_of_most_bytes(folder):
    configure(folder, dtype=...)
    store(
        folder,
        lambda state: {
            name: tensor.to(torch.float32 if "norm" in name else torch.bfloat16)
            for name, tensor in state.items()
        },
    )
    assert load_folder(folder).model.dtype == torch.bfloat16


def test_a_pickled_model_is_refused_and_never_opened(folder):
    (folder / "model.safetensors").unlink()
    model = tiny_model("llama").model
    torch.save({"model": model}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled.*save_pretrained"):
        load_folder(folder)


def test_a_token_without_a_row_is_found_when_the_model_loads(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="'zebra' as 100.*resize_token_embeddings"):
        load_folder(folder)
    with pytest.raises(ModelError, match="'zebra'"):
        loaded_from(tiny_model("llama").model, tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` 1000000000"),
        ({"num_hidden_layers": 4000}, "4000 blocks, but its files hold"),
        ({"num_hidden_layers": -1}, "nothing to prune"),
        ({"num_hidden_layers": "many"}, "cannot be loaded.*num_hidden_layers"),
        ({"vocab_size": 10**15}, "`vocab_size` 1000000000000000"),
        ({"max_position_embeddings": 10**12}, "`max_position_embeddings`"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "`num_hidden_layers`"),
    ],
)
def test_absurd_sizes_are_refused_at_once(folder, changes, message):
    configure(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load_folder(folder)


def test_blocks_are_counted_in_every_part():
    assert asked_blocks({"a": {"n_layer": 3}, "num_hidden_layers": 2}) == 3


def test_what_is_left_out_is_said_and_side_files_are_carried(folder, tmp_path, caplog):
    store(folder, lambda state: state | {"score.weight": torch.ones(2, 2)})
    sides = {"tokenizer.model": "t", "preprocessor_config.json": "{}", "LICENSE": "mine"}
    for name, text in {**sides, "README.md": "the base", "modeling_x.py": "raise"}.items():
        (folder / name).write_text(text)
    (folder / "original").mkdir()
    loaded = load_folder(folder)
    assert "1 tensor(s)" in caplog.text and "score.weight" in caplog.text
    export(loaded, tmp_path / "out")
    found = {name: (tmp_path / "out" / name).read_text() for name in sides}
    assert found == sides
    assert not {"README.md", "modeling_x.py"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert "not exported with the model: modeling_x.py, original" in caplog.text


def test_nothing_is_said_of_a_plain_model(folder, tmp_path, caplog):
    export(load_folder(folder), tmp_path / "out")
    assert caplog.text == ""


def broken(kind):
    """Return a model that makes no numbers in its second block, and what is to blame."""
    loaded = tiny_model("llama")
    first, second = loaded.model.model.layers[:2]
    with torch.no_grad():
        if kind == "weight":
            second.mlp.up_proj.weight[0, 0] = torch.nan
            return loaded, "model.layers.1.mlp.up_proj"
        first.mlp.down_proj.weight[0, 0] = torch.inf if kind == "input" else 0
        if kind == "inside":
            second.mlp.up_proj.weight.fill_(1e38)
            return loaded, "model.layers.1"
    return loaded, "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("kind", ["weight", "input", "inside"])
@pytest.mark.parametrize(
    "pruner", ["magnitude", "wanda", "ria", "sparsegpt", "alps", "sparseswaps"]
)
def test_what_is_no_number_is_named_by_every_solver(kind, pruner):
    loaded, name = broken(kind)
    if pruner == "magnitude" and kind == "inside":
        pytest.skip("it looks at no inputs")
    with pytest.raises(ModelError, match="NaN|finite|infinite") as error:
        prune_locally(loaded, token_samples(4, 16), pruner=pruner)
    assert name in str(error.value)


@pytest.mark.parametrize("kind", ["weight", "input", "inside"])
def test_a_perplexity_that_is_no_number_says_why(kind, caplog):
    loaded, _ = broken(kind)
    found = perplexity(loaded, torch.stack(list(token_samples(2, 8))))
    assert found.perplexity != found.perplexity
    assert "NaN or infinite" in found.reason and found.reason in caplog.text
    where = {"weight": "layers.1.mlp.up_proj", "input": "layers.0.mlp.down_proj"}
    assert where.get(kind, "the inputs of `model.layers.2`") in found.reason


def test_a_perplexity_that_is_a_number_has_no_reason():
    assert perplexity(tiny_model("llama"), torch.stack(list(token_samples(2, 8)))).reason == ""
