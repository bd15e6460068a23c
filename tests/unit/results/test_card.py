"""The card: what it says is what was run, and the Hub can read it."""

from dataclasses import asdict

import pytest
from huggingface_hub import ModelCard

from fedprune.config import config_from_overrides
from fedprune.methods.registry import get_method
from fedprune.results.card import model_card, privacy_statement, write_card

RESULTS = {
    "strategy": asdict(get_method("fedprllm").words),
    "agreement": {"pairwise": 0.9},
    "model": {"weights_hash": "abc123"},
    "sparsity": {"overall": 0.5, "weights": 1_000},
    "clients": [{"name": "saint-mary-ward-7"}, {"name": "city-hospital"}],
    "perplexity": {
        "news": {
            "dense": 10.0,
            "pruned": 12.34567,
            "centralized": None,
            "local_only": {"mean": 15.0, "clients": {"saint-mary-ward-7": 15.0}},
        },
        "gone": {"dense": 9.0, "pruned": None, "centralized": None, "local_only": None},
    },
    "versions": {"python": "3.11", "torch": "2.13"},
}


def card(*overrides):
    return model_card(config_from_overrides(overrides), RESULTS)


def statement(*overrides):
    config = config_from_overrides(overrides)
    words = {"strategy": asdict(get_method(config.strategy.name).words)}
    return privacy_statement(config, RESULTS | words)


def test_the_metadata_is_what_the_hub_reads():
    made = card("model=org/base", "card.license=apache-2.0", "strategy=fedspallm")
    data = ModelCard(str(made)).data
    assert data.base_model == "org/base" and data.license == "apache-2.0"
    assert data.library_name == "transformers" and "fedspallm" in data.tags
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type) == ("news", "perplexity")
    assert result.metric_value == 12.3457


def test_a_perplexity_of_a_part_says_so():
    assert "that do not overlap; lower" in card().text
    assert "overlap, the first 8 of each text; lower" in card("evaluation.max_windows=8").text


def test_nothing_measured_is_no_error():
    results = RESULTS | {"perplexity": {}}
    made = model_card(config_from_overrides([]), results)
    assert made.data.eval_results is None and "It was not measured." in made.text


def test_the_text_says_what_was_run_and_names_no_client():
    text = card("sparsity=0.5", "card.data_description=letters, 1998").text
    for part in (
        "| strategy | fedprllm |",
        "| zeros among prunable weights | 50.00% of 1,000 |",
        "| news | 10.00 | 12.35 | 15.00 | – |",
        "| gone | 9.00 | – | – | – |",
        "pruned by 2 clients together",
        "`abc123`",
        "letters, 1998",
        "fedprune/masks.safetensors",
        "torch 2.13",
    ):
        assert part in text
    assert "mary" not in text and "city" not in text


def test_a_local_folder_is_named_and_its_place_is_not(tmp_path):
    folder = tmp_path / "private" / "Llama-x"
    folder.mkdir(parents=True)
    made = card(f"model={folder}")
    assert "Llama-x" in made.text and "private" not in str(made)
    assert made.data.base_model is None
    named = card(f"model={folder}", "card.base_model=org/llama")
    assert named.data.base_model == "org/llama" and "org/llama" in named.text


def test_the_demo_has_no_id():
    assert card().data.base_model is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["strategy=fedprllm"], "masks, one bit a weight"),
        (["strategy=fedspallm"], "the values of those"),
        (["strategy=fedstats"], "sum of its squared inputs"),
        (["strategy=fedhessian", "pruner=sparsegpt"], "second moments"),
        (["allocation=owl", "sparsity=0.7"], "sums of squared inputs of the dense model"),
    ],
)
def test_the_statement_is_that_of_the_strategy(overrides, said):
    text = statement(*overrides)
    assert said in text
    assert "no formal guarantee" in text and "words of a small calibration set" in text


def test_magnitudes_tell_nothing_of_texts_unless_clients_were_surveyed():
    assert "follow from the public weights alone" in statement("pruner=magnitude")
    surveyed = statement("pruner=magnitude", "allocation=owl")
    assert "public weights alone" not in surveyed
    sums = RESULTS | {"agreement": None}
    config = config_from_overrides(["pruner=magnitude"])
    assert "public weights alone" not in privacy_statement(config, sums)


def test_a_method_of_somebody_else_brings_its_words():
    own = {"label": "Lottery", "sends": "a number it drew", "tells": "It tells nothing."}
    text = privacy_statement(config_from_overrides([]), RESULTS | {"strategy": own})
    assert "Each client sent the server: a number it drew; " in text and "It tells nothing." in text


def test_no_name_of_a_data_set_breaks_the_table():
    perplexity = {"a|b\n<img src=x>": RESULTS["perplexity"]["news"]}
    text = model_card(config_from_overrides([]), RESULTS | {"perplexity": perplexity}).text
    assert "| a\\|b \\<img src=x\\> | 10.00 |" in text


def test_perplexities_leave_a_client_only_where_they_are_asked_for():
    assert "perplexities" in statement()
    assert "perplexities" not in statement("evaluation.local_only=false")


def test_a_card_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    config = config_from_overrides([])
    write_card(tmp_path, config, RESULTS)
    assert ModelCard.load(tmp_path / "README.md").data.library_name == "transformers"
    with caplog.at_level("WARNING", "flwr"):
        write_card(tmp_path / "missing" / "file", config, {})
    assert "card could not be written" in caplog.text


def test_it_says_how_close_the_model_stays():
    assert "KL" not in card().text
    close = {"news": {"pruned": {"kl": 0.25, "top1": 0.75}}}
    text = model_card(config_from_overrides([]), RESULTS | {"fidelity": close}).text
    assert "| news | 0.2500 | 75.0% |" in text and "KL, federated" in text


def test_it_says_what_the_model_takes():
    assert "## What it takes\n\nIt was not measured." in card().text
    sizes = {"base": 4_000_000, "dense": 1_000_000}
    figures = {"prompt_ratio": 1.25, "generation_ratio": 1.5, "peak_bytes": 2_000_000}
    speed = {"dense": figures | {"peak_bytes": 3_000_000}, "pruned": figures}
    text = model_card(config_from_overrides([]), RESULTS | {"sizes": sizes, "speed": speed}).text
    assert "take 1.0 MB, 25% of the base model's" in text
    assert "reads 1.25 and writes 1.50 times" in text and "2.0 MB beside 3.0 MB" in text


def test_a_model_of_images_says_what_was_pruned_and_how_it_is_loaded():
    told = {
        "class": "LlavaForConditionalGeneration",
        "loads_with": "AutoModelForImageTextToText",
        "blocks": "model.language_model.layers",
        "unread": [{"name": "model.vision_tower", "kind": "CLIPVisionModel", "parameters": 1234}],
    }
    results = RESULTS | {"model": RESULTS["model"] | told}
    text = str(model_card(config_from_overrides([]), results))
    assert "pipeline_tag: image-text-to-text" in text
    assert "model.vision_tower (CLIPVisionModel, 1,234)" in text
    assert "model.language_model.layers" in text
    assert "AutoModelForImageTextToText.from_pretrained(folder)" in text
    assert "AutoProcessor.from_pretrained(folder)" in text


def test_gradients_that_leave_a_client_are_told():
    plain = statement("strategy=fedstats", "schedule=iterative")
    assert "No text, token, hidden state or gradient left a client" in plain
    for pruner in ("wanda", "magnitude"):
        method = "fedstats" if pruner == "wanda" else "fedprllm"
        told = statement(
            f"strategy={method}", f"pruner={pruner}", "schedule=iterative", "reconstruct=fedavg"
        )
        assert "sums of gradients" in told and "or gradient left" not in told
        assert "public weights alone" not in told
