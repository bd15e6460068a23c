"""A whole job on a checkpoint of images and text, as a user types it."""

import json
import random

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from fedprune.cli import main
from tests.support.architectures import VOCABULARY
from tests.support.image_text import saved_image_text
from tests.support.jobs import masks_of
from tests.support.masks import equal_bits

BLOCKS = "model.language_model.layers"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A Qwen3-VL with what its processor keeps beside it, and texts in its tokenizer's words."""
    folder = tmp_path_factory.mktemp("inputs")
    model = saved_image_text("qwen3_vl", folder / "model")
    (model / "preprocessor_config.json").write_text('{"image_processor_type": "Qwen2VL"}')
    draw = random.Random(0)
    lines = [
        json.dumps({"text": " ".join(f"w{draw.randrange(10, VOCABULARY)}" for _ in range(200))})
        for _ in range(12)
    ]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return model, folder / "texts.jsonl"


def test_a_typed_job_prunes_the_text_decoder_and_nothing_else(tmp_path, inputs, capsys):
    dense, texts = inputs
    run = tmp_path / "run"
    status = main(
        [
            "run",
            f"model={dense}",
            f"data={texts}",
            "data.partition=iid",
            "strategy=fedstats",
            "schedule=iterative",
            "sparsity=0.5",
            "pruner.num_calibration_samples=2",
            "pruner.seq_len=32",
            "evaluation.seq_len=32",
            "evaluation.max_windows=2",
            "federation.backend=inline",
            "federation.num_clients=3",
            f"output_dir={run}",
        ]
    )
    assert status in (0, None), capsys.readouterr().err
    masks = masks_of(run)
    assert len(masks) == 2 * 7  # of two blocks, and of no tower
    exported, told = hf.AutoModelForImageTextToText.from_pretrained(
        run / "model", dtype="auto", output_loading_info=True
    )
    assert type(exported) is hf.Qwen3VLForConditionalGeneration
    assert not told["missing_keys"] and not told["unexpected_keys"]
    before, after = (load_file(place / "model.safetensors") for place in (dense, run / "model"))
    pruned = {f"{BLOCKS}.{block}.{name}.weight": mask for (block, name), mask in masks.items()}
    assert set(pruned) <= set(before) == set(after)
    rest = set(before) - set(pruned)
    assert any(name.startswith("model.visual.") for name in rest)
    assert equal_bits({n: after[n] for n in rest}, {n: before[n] for n in rest})
    for name, mask in pruned.items():
        kept = torch.from_numpy(mask)
        assert torch.equal(after[name], torch.where(kept, before[name], 0)), name
        assert int((~kept).sum(1).min()) == int((~kept).sum(1).max()) == kept.shape[1] // 2
    assert (run / "model" / "preprocessor_config.json").read_bytes() == (
        dense / "preprocessor_config.json"
    ).read_bytes()
    results = json.loads((run / "results.json").read_text())
    assert results["model"]["blocks"] == BLOCKS
    assert [part["name"] for part in results["model"]["unread"]] == ["model.visual"]
    assert "pipeline_tag: image-text-to-text" in (run / "model" / "README.md").read_text()
    sees_and_reads(exported)


def sees_and_reads(model) -> None:
    """An image goes through the exported model as through any of its class."""
    eyes = model.config.vision_config
    size = eyes.in_channels * eyes.temporal_patch_size * eyes.patch_size**2
    grid = torch.tensor([[1, 2, 2]])
    image = model.config.image_token_id
    tokens = torch.tensor([[20, model.config.vision_start_token_id, image, 30, 31]])
    with torch.no_grad():
        seen = model(
            input_ids=tokens,
            mm_token_type_ids=(tokens == image).int(),
            pixel_values=torch.randn(4, size),
            image_grid_thw=grid,
        ).logits
    assert bool(torch.isfinite(seen).all())
