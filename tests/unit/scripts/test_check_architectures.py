"""Every kind of decoder that can be pruned is, from end to end; the others say why not."""

import pytest

from scripts.check_architectures import CRASHES, REFUSED, WORKS, WRONG, Found, check, main, table
from scripts.tiny_architectures import MODEL_TYPES

#: Fast ones, each odd in a way of its own: keys and values that blocks share, a matrix that is
#: never called, attention that never happens, indices that blocks pass on, fused experts.
FEW = ("gemma3n_text", "mamba", "bart", "hy_v4", "qwen3_moe")

#: One of each way to be odd, and of the families that most people have.
SAMPLE = (
    "llama mistral qwen2 qwen3 gemma2 gemma3_text gemma4_text phi3 olmo2 falcon gpt2 gpt_neox opt "
    "bloom mixtral qwen2_moe deepseek_v2 deepseek_v3 gpt_oss llama4_text granitemoehybrid jamba "
    "falcon_mamba mamba2 rwkv recurrent_gemma lfm2 zamba olmo_hybrid xlnet xlm reformer bert "
    "big_bird whisper git mllama glm_moe_dsa blt hrm_text"
).split()

#: Towers of several kinds, one without any, mixtures, attention to images inside the text's blocks.
IMAGE_TEXT = (
    "qwen3_vl qwen2_5_vl gemma3 llama4 mistral3 internvl paligemma mllama chameleon qwen3_5_moe"
).split()

REFUSALS = {
    "hrm_text": "more than once",
    "xlm": "needs what earlier blocks",
    "xlnet": "only 44% of the weights",
}


@pytest.mark.parametrize("model_type", FEW)
def test_an_odd_decoder_is_pruned_from_end_to_end(tmp_path, model_type):
    found = check(model_type, tmp_path)
    assert (found.outcome, found.reason) == (WORKS, "")
    assert found.linears > 0


@pytest.mark.slow
@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_of_all_architectures(tmp_path, model_type):
    found = check(model_type, tmp_path)
    if model_type in REFUSALS:
        assert found.outcome == REFUSED and REFUSALS[model_type] in found.reason
    else:
        assert (found.outcome, found.reason) == (WORKS, "")


def test_a_model_of_images_and_text_is_pruned_from_end_to_end(tmp_path):
    found = check("llava", tmp_path, "image-text")
    assert (found.outcome, found.reason) == (WORKS, "")


def test_a_model_that_needs_an_image_is_refused_for_that(tmp_path):
    found = check("blip-2", tmp_path, "image-text")
    assert found.outcome == REFUSED and "pixel_values" in found.reason


@pytest.mark.slow
@pytest.mark.parametrize("model_type", IMAGE_TEXT)
def test_a_sample_of_all_that_see_images(tmp_path, model_type):
    found = check(model_type, tmp_path, "image-text")
    assert (found.outcome, found.reason) == (WORKS, "")


def test_the_samples_are_of_what_transformers_knows():
    assert len(set(SAMPLE)) == 40
    assert {*SAMPLE, *FEW} <= set(MODEL_TYPES["causal"])
    assert len(set(IMAGE_TEXT)) == 10
    assert set(IMAGE_TEXT) <= set(MODEL_TYPES["image-text"])


def test_a_table_counts_and_gives_reasons():
    found = [
        Found("llama", WORKS, linears=28),
        Found("xlm", REFUSED, "two | lists"),
        Found("odd", WRONG, "other masks"),
        Found("new", CRASHES, "died with -11"),
    ]
    lines = table(found).splitlines()
    assert lines[0] == "4 model types:"
    assert "| refused, with the reason | 1 |" in lines
    assert "| xlm | two / lists |" in lines
    assert "| llama | 28 | 0.0% |" in lines


def test_an_unknown_model_type_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["lama"])
    assert "AutoModelForCausalLM knows no lama" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--class", "image-text", "llama"])
    assert "AutoModelForImageTextToText knows no llama" in capsys.readouterr().err
