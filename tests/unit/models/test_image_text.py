"""Checkpoints of images and text: the text decoder is pruned, all else comes out as it was."""

import json
import re

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from fedprune.config.pattern import Pattern
from fedprune.errors import ModelError
from fedprune.evaluation import speed
from fedprune.evaluation.perplexity import perplexities
from fedprune.evaluation.speed import measure_speed
from fedprune.models.export import export_model
from fedprune.models.layout import find_layout
from fedprune.models.loading import loaded_from, model_shapes, whole_model
from fedprune.models.unread import describe
from fedprune.pruning.blocks import BlockWalk, prune_blocks
from fedprune.pruning.groups import BlockSpec
from fedprune.pruning.registry import get_pruner
from fedprune.wire.changes import mask_of
from tests.support.architectures import tiny_tokenizer, token_samples
from tests.support.folders import load_folder, model_config
from tests.support.image_text import IMAGE_TEXT, image_text_model, saved_image_text
from tests.support.masks import equal_bits, random_masks

SPEC = BlockSpec(sparsity=0.4, pattern=Pattern(), group="row")
WANDA = get_pruner("wanda")
UNREAD = {
    "llava": {"model.multi_modal_projector", "model.vision_tower"},
    "mistral3": {"model.multi_modal_projector", "model.vision_tower"},
    "gemma3": {"model.multi_modal_projector", "model.vision_tower"},
    "qwen3_vl": {"model.visual"},
    "qwen3_5": {"model.visual"},
    "llama4": {"multi_modal_projector", "vision_model"},
    "fuyu": {"model.vision_embed_tokens"},
    "got_ocr2": {"model.multi_modal_projector", "model.vision_tower"},
    "git": {"git.image_encoder", "git.visual_projection"},
}


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.fixture(scope="module", params=IMAGE_TEXT)
def folder(request, tmp_path_factory):
    return saved_image_text(request.param, tmp_path_factory.mktemp("models") / request.param)


def test_what_text_never_reaches_is_found(folder):
    layout = load_folder(folder).layout
    assert layout.unread == UNREAD[folder.name]
    assert len(layout.blocks) == 2
    assert model_shapes(model_config(folder)) == layout.shapes()


def test_the_whole_is_exported_pruned_in_its_text_alone(folder, tmp_path):
    loaded = load_folder(folder)
    masks = random_masks(loaded, 0.5)
    export_model(loaded, masks, tmp_path / "out")
    unread = tuple(f"{name}." for name in UNREAD[folder.name])
    plain = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    again = hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert type(again) is type(plain) is type(loaded.model)
    before, after = plain.state_dict(), again.state_dict()
    changed = {loaded.layout.parameter_name(b, n) for b, part in masks.items() for n in part}
    rest = [name for name in before if name not in changed]
    assert equal_bits({n: after[n] for n in rest}, {n: before[n] for n in rest})
    assert any(name.startswith(unread) for name in rest)
    with torch.no_grad():
        for block, part in masks.items():
            for name, mask in part.items():
                parameter = plain.get_parameter(loaded.layout.parameter_name(block, name))
                matrix = loaded.layout.linears(block)[name].orient(parameter)
                matrix[~torch.from_numpy(mask.to_bool())] = 0
    tokens = torch.stack(token_samples(2, 12))
    assert torch.equal(logits(again, tokens), logits(plain, tokens))


def test_masks_are_those_of_wanda_on_the_full_model(folder):
    """By hand: hooks on the first block of what plain transformers loads."""
    loaded, samples = load_folder(folder), token_samples(3, 10)
    masks = dict(prune_blocks(BlockWalk(loaded, samples), WANDA, {0: SPEC}))[0]
    plain = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    block = plain.get_submodule(loaded.layout.prefix)[0]
    sums = {}

    def add(name):
        def hook(_module, args):
            sums[name] = sums.get(name, 0) + args[0].flatten(0, -2).double().square().sum(0)

        return hook

    names = [name for name, linear in loaded.layout.linears(0).items() if linear.expert is None]
    for name in names:
        block.get_submodule(name).register_forward_pre_hook(add(name))
    for sample in samples:
        logits(plain, sample[None])
    for name in names:
        linear = loaded.layout.linears(0)[name]
        weight = linear.orient(block.get_submodule(name).weight.detach())
        order = (weight.abs() * sums[name].float().sqrt()).argsort(dim=1, stable=True)
        kept = torch.ones_like(weight, dtype=torch.bool)
        kept.scatter_(1, order[:, : int(weight.shape[1] * SPEC.sparsity)], value=False)
        assert torch.equal(torch.from_numpy(mask_of(masks[name]).to_bool()), kept)


@pytest.mark.parametrize(
    ("family", "body"),
    [
        ("llava", "model.language_model."),
        ("mistral3", "model.language_model."),
        ("gemma3", "model.language_model."),
        ("qwen3_5", "model.language_model."),
        ("llama4", "language_model.model."),
    ],
)
def test_masks_are_those_of_the_text_model_alone(tmp_path, family, body):
    whole = load_folder(saved_image_text(family, tmp_path))
    state = image_text_model(family).state_dict()
    text = hf.AutoModelForCausalLM.from_config(whole.model.config.get_text_config())
    own = {name.replace(body, "model."): t for name, t in state.items() if name.startswith(body)}
    own["lm_head.weight"] = next(t for name, t in state.items() if name.endswith("lm_head.weight"))
    text.load_state_dict(own)
    found = bits(whole)
    assert len(found) == sum(map(len, whole.layout.shapes()))
    assert found == bits(loaded_from(text, tiny_tokenizer()))


def bits(loaded):
    specs = dict.fromkeys(range(2), SPEC)
    made = prune_blocks(BlockWalk(loaded, token_samples(3, 10)), WANDA, specs)
    return {
        (block, name): mask_of(change).bits.tobytes()
        for block, changes in made
        for name, change in changes.items()
    }


def test_perplexity_is_that_of_the_full_model_on_text(folder):
    windows = torch.stack(token_samples(2, 12, seed=5))
    told = perplexities(load_folder(folder), {"x": windows}, torch.device("cpu"), {})[
        "x"
    ].perplexity
    plain = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    loss = torch.nn.functional.cross_entropy(
        logits(plain, windows)[:, :-1].flatten(0, 1).double(), windows[:, 1:].flatten()
    )
    assert told == pytest.approx(float(loss.exp()), rel=1e-5)


def test_a_tower_in_another_type_keeps_it(tmp_path):
    """The text is stored in bfloat16 and computed so, the tower in float32: no bit may go."""
    folder = saved_image_text("llava", tmp_path / "model", torch.bfloat16)
    configuration = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(configuration | {"dtype": "bfloat16"}))
    file = folder / "model.safetensors"
    towers = re.compile("vision_tower|multi_modal_projector")
    state = {
        name: tensor.float() + 1e-5 if towers.search(name) else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(state, file, {"format": "pt"})
    loaded = load_folder(folder)
    assert loaded.model.dtype == torch.bfloat16
    export_model(loaded, random_masks(loaded, 0.5), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    kept = [name for name in state if towers.search(name)]
    assert equal_bits({name: found[name] for name in kept}, {name: state[name] for name in kept})


def test_nobody_holds_what_text_never_reaches(folder):
    loaded = load_folder(folder)
    unread = tuple(f"{name}." for name in loaded.layout.unread)
    asked = []
    tensors = loaded.source.tensors

    def watched(names):
        names = list(names)
        asked.extend(names)
        return tensors(names)

    object.__setattr__(loaded.source, "tensors", watched)
    bits(loaded)
    perplexities(loaded, {"x": torch.stack(token_samples(1, 8))}, torch.device("cpu"), {})
    assert asked
    assert not [name for name in asked if name.startswith(unread)]


class Borrowing(hf.LlavaForConditionalGeneration):
    """Multiplies by a weight of its projector without calling it."""

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.logits = found.logits + self.model.multi_modal_projector.linear_1.weight.sum()
        return found


def test_a_part_whose_weight_is_used_without_a_call_counts_as_read():
    model = image_text_model("llava")
    assert find_layout(model).unread == UNREAD["llava"]
    model.__class__ = Borrowing
    assert not find_layout(model).unread


def test_a_part_that_shares_a_weight_with_one_that_is_read_counts_as_read():
    model = image_text_model("llava")
    projector = model.model.multi_modal_projector
    projector.linear_2.weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert find_layout(model).unread == {"model.vision_tower"}


def test_side_files_of_processors_are_carried(tmp_path):
    folder = saved_image_text("qwen3_vl", tmp_path / "model")
    beside = {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor"},
        "processor_config.json": {"processor_class": "Qwen3VLProcessor"},
    }
    for name, content in beside.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    export_model(load_folder(folder), {}, tmp_path / "out")
    for name in (*beside, "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_said_of_the_parts(tmp_path):
    loaded = load_folder(saved_image_text("gemma3", tmp_path))
    said = describe(loaded)
    assert said["class"] == "Gemma3ForConditionalGeneration"
    assert said["loads_with"] == "AutoModelForImageTextToText"
    assert said["blocks"] == "model.language_model.layers"
    names = [part["name"] for part in said["unread"]]
    assert names == ["model.vision_tower", "model.multi_modal_projector"]
    weights = sum(one.numel() for one in loaded.model.model.vision_tower.parameters())
    assert said["unread"][0]["parameters"] == weights
    assert said["unread"][0]["kind"] == "SiglipVisionModel"


def test_an_export_is_measured_as_the_class_that_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "_LEAST_SECONDS", 0.0)
    loaded = load_folder(saved_image_text("qwen3_vl", tmp_path / "model"))
    export_model(loaded, random_masks(loaded, 0.5), tmp_path / "out")
    assert type(whole_model(str(tmp_path / "out"))) is hf.Qwen3VLForConditionalGeneration
    assert measure_speed(tmp_path / "out", torch.device("cpu"), 8, 1).dense > 0


def test_a_text_side_that_needs_images_is_refused_by_the_configuration(tmp_path):
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    blip = hf.BlipConfig(
        text_config=small | {"vocab_size": 100},
        vision_config=small | {"image_size": 16, "patch_size": 8},
    )
    blip.architectures = ["BlipForConditionalGeneration"]
    blip.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Blip.* on token ids alone .*pixel_values"):
        model_shapes(model_config(tmp_path))


def test_a_configuration_of_no_text_is_refused(tmp_path):
    hf.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'vit' cannot be pruned.*image-text-to-text"):
        model_shapes(model_config(tmp_path))
