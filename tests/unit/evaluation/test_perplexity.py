"""Perplexity against the library, and the texts that it is measured on."""

import copy
import json
import logging
import math

import datasets
import pytest
import torch

from fedprune.config import config_from_overrides, evaluation_data
from fedprune.data.documents import Document
from fedprune.errors import DataError, ModelError
from fedprune.evaluation import perplexity as module
from fedprune.evaluation.perplexity import (
    evaluation_windows,
    last_states,
    perplexities,
    perplexity,
    scores,
    token_windows,
)
from fedprune.models.changes import Recalled
from fedprune.models.loading import loaded_from
from tests.support.architectures import FAMILIES, tiny_model, tiny_tokenizer, token_samples
from tests.support.masks import equal_bits, expected_state, random_masks, state_of


def documents(*texts):
    return [Document(text, "group", str(number)) for number, text in enumerate(texts)]


def slow_nll(model, windows):
    """Mean over predicted tokens, one forward pass of the prefix for each."""
    losses = []
    for window in windows:
        for place in range(1, len(window)):
            with torch.no_grad():
                logits = model(input_ids=window[None, :place], use_cache=False).logits[0, -1]
            losses.append(-logits.double().log_softmax(0)[window[place]].item())
    return sum(losses) / len(losses), len(losses)


def pruned_twin(loaded):
    """Return random masks, and the same model with them in its weights."""
    masks = random_masks(loaded, survivors=0.3)
    twin = copy.deepcopy(loaded.model)
    twin.load_state_dict(expected_state(loaded, masks))
    return masks, twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agreement_equals_a_loop_over_tokens(dtype, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 4)
    loaded, windows = tiny_model("llama", dtype), torch.stack(token_samples(3, 9))
    masks, twin = pruned_twin(loaded)
    found = perplexities(
        loaded, {"": windows}, changes=masks, against=last_states(loaded, {"": windows})
    )[""]
    divergences, same = [], []
    for window in windows:
        with torch.no_grad():
            pair = [m(input_ids=window[None]).logits[0, :-1].double() for m in (loaded.model, twin)]
        for dense, other in zip(*pair, strict=True):
            p, q = dense.softmax(0), other.softmax(0)
            divergences.append(sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True)))
            same.append(dense.argmax() == other.argmax())
    assert found.kl == pytest.approx(sum(divergences) / 24, rel=1e-4)
    assert found.top1 == pytest.approx(sum(same) / 24) and 0 < found.top1 < 1


def test_a_model_agrees_with_itself_and_every_text_is_apart():
    loaded = tiny_model()
    windows = {name: torch.stack(token_samples(2, 9, seed)) for seed, name in enumerate("ab")}
    states = last_states(loaded, windows)
    own = scores(states, windows, against=states)
    assert {(one.kl, one.top1) for one in own.values()} == {(0.0, 1.0)}
    masks, _ = pruned_twin(loaded)
    both = perplexities(loaded, windows, changes=masks, against=states)
    alone = {name: perplexity(loaded, text, changes=masks) for name, text in windows.items()}
    assert both["a"].kl != both["b"].kl
    assert {n: one.nll for n, one in both.items()} == {n: one.nll for n, one in alone.items()}
    assert alone["a"].kl is alone["a"].top1 is None


def test_a_token_that_is_ruled_out_adds_nothing():
    dense, other = torch.tensor([[0.0, -math.inf, 1.0]]), torch.tensor([[1.0, -math.inf, 0.0]])
    p = [1 / (1 + math.e), math.e / (1 + math.e)]
    expected = p[0] * math.log(p[0] / p[1]) + p[1] * math.log(p[1] / p[0])
    assert module._divergence(dense, other).item() == pytest.approx(expected)
    gone = torch.tensor([[-math.inf, 0.0, 0.0]])
    assert module._divergence(dense, gone).item() == math.inf


def test_states_of_other_windows_or_another_vocabulary_are_refused():
    loaded, windows = tiny_model(), {"": torch.stack(token_samples(2, 9))}
    states = last_states(loaded, windows)
    with pytest.raises(ModelError, match="of 2 windows, these are 1"):
        perplexities(loaded, {"": windows[""][:1]}, against=states)
    smaller = copy.deepcopy(loaded.model)
    smaller.resize_token_embeddings(smaller.config.vocab_size + 8)
    other = loaded_from(smaller, loaded.tokenizer)
    with pytest.raises(ModelError, match="two vocabularies"):
        perplexities(other, windows, against=states)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_loop_over_tokens(family, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 4)
    loaded = tiny_model(family)
    windows = torch.stack(token_samples(3, 7))
    found = perplexity(loaded, windows)
    nll, tokens = slow_nll(loaded.model, windows)
    assert found.nll == pytest.approx(nll, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nll), rel=1e-5)
    assert (found.windows, found.tokens) == (3, tokens) == (3, 18)


def test_half_precision_logits_are_scored_in_float32():
    loaded = tiny_model("llama", torch.bfloat16)
    windows = torch.stack(token_samples(1, 9))
    with torch.no_grad():
        logits = loaded.model(input_ids=windows).logits[0, :-1].double()
    expected = -logits.log_softmax(-1).gather(1, windows[0, 1:, None]).mean().item()
    assert perplexity(loaded, windows).nll == pytest.approx(expected, rel=1e-6)


def test_a_hopeless_model_has_infinite_perplexity():
    loaded = tiny_model("llama")
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.mul_(1e6)
    found = perplexity(loaded, torch.stack(token_samples(1, 9)))
    assert found.perplexity == math.inf and 700 < found.nll < math.inf


def test_windows_longer_than_the_model():
    with pytest.raises(ModelError, match="`evaluation.seq_len` is 33"):
        perplexity(tiny_model(), torch.stack(token_samples(1, 33)))


def test_out_of_memory_names_the_keys_to_turn(monkeypatch):
    loaded = tiny_model()

    def exhaust(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for part in (loaded.model, loaded.layout.linears(1)["mlp.up_proj"].module):
        with monkeypatch.context() as patch:
            patch.setattr(part, "forward", exhaust)
            with pytest.raises(ModelError, match="`evaluation.seq_len`, `pruner.device`"):
                perplexity(loaded, torch.stack(token_samples(1, 4)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_changes_are_asked_for_block_by_block_and_leave_the_model_dense(family):
    loaded, asked = tiny_model(family), []
    masks, before = random_masks(loaded), state_of(loaded)
    windows = {"a": torch.stack(token_samples(2, 7)), "b": torch.stack(token_samples(3, 5, seed=1))}
    changes = Recalled(range(1, 3), lambda block: asked.append(block) or masks[block])
    found = perplexities(loaded, windows, changes=changes)
    assert asked == list(range(1, len(loaded.layout.blocks)))
    assert equal_bits(state_of(loaded), before)
    del masks[0]
    loaded.model.load_state_dict(expected_state(loaded, masks))
    for label, rows in windows.items():
        nll, tokens = slow_nll(loaded.model, rows)
        assert found[label].nll == pytest.approx(nll, rel=1e-5)
        assert found[label].tokens == tokens


def test_documents_are_joined_by_eos_and_the_tail_is_dropped():
    windows = token_windows(documents("w3 w4", "w5", "w6 w7 w8"), tiny_tokenizer(), 3)
    assert windows.tolist() == [[3, 4, 2], [5, 2, 6]]
    assert windows.dtype == torch.int64


def test_documents_are_joined_by_a_blank_line_without_eos():
    class Letters:
        eos_token_id = None

        def __call__(self, text, **_options):
            return {"input_ids": [ord(letter) for letter in text]}

    windows = token_windows(documents("ab", "c"), Letters(), 5)
    assert windows.tolist() == [[97, 98, 10, 10, 99]]


def test_max_windows_limits_windows_and_tokenising():
    tokenised = []
    inner = tiny_tokenizer()

    class Counting:
        eos_token_id = inner.eos_token_id

        def __call__(self, text, **options):
            tokenised.append(text)
            return inner(text, **options)

    texts = documents("w3 w4", "w5 w6 w7", "w8 w9 w10")
    assert token_windows(texts, Counting(), 2, max_windows=2).tolist() == [[3, 4], [2, 5]]
    assert tokenised == ["w3 w4", "w5 w6 w7"]
    assert len(token_windows(texts, inner, 2, max_windows=99)) == 5


@pytest.mark.parametrize("texts", [[], ["w3 w4"]])
def test_too_little_text(texts):
    with pytest.raises(DataError, match=rf"have {2 * len(texts)} tokens.*seq_len` needs 3"):
        token_windows(documents(*texts), tiny_tokenizer(), 3)


def test_a_window_must_predict_something():
    with pytest.raises(DataError, match="at least 2, got 1"):
        token_windows(documents("w3 w4"), tiny_tokenizer(), 1)


def test_long_texts_raise_no_warning(caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 4
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # the library's loggers do not propagate
    try:
        tokenizer("w3 " * 9)
        assert "longer than" in caplog.text  # it would warn
        caplog.clear()
        again = tiny_tokenizer()
        again.model_max_length = 4
        token_windows(documents("w3 " * 9), again, 3)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


class Letters:
    """One token a character, after a special token if asked for."""

    eos_token_id = 2

    def __call__(self, text, *, add_special_tokens, verbose):
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


@pytest.mark.parametrize(
    ("joiner", "text"), [("space", "ab c def"), ("blank_line", "ab\n\nc\n\ndef")]
)
def test_published_protocols_join_the_text_and_tokenise_it_once(joiner, text):
    wanted = [1, *map(ord, text)]
    windows = token_windows(documents("ab", "c", "def"), Letters(), 3, joiner=joiner)
    assert windows.flatten().tolist() == wanted[: len(wanted) // 3 * 3]
    assert len(token_windows(documents("ab", "c", "def"), Letters(), 3, 2, joiner)) == 2


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("own", "news", "mail"):
        (tmp_path / name).mkdir()
        rows = [
            {"text": " ".join(f"w{3 + (n + row) % 90}" for n in range(40))} for row in range(20)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "test.jsonl").write_text(lines)
    return tmp_path


def config(texts, names, *more):
    return config_from_overrides(
        [f"data={texts / 'own'}", "evaluation.seq_len=16", f"evaluation.datasets={names}", *more]
    )


def test_the_run_s_own_held_out_texts_come_first_then_each_data_set_whole(texts):
    chosen = config(texts, f"{texts / 'news'}, {texts / 'mail' / 'test.jsonl'}")
    windows = evaluation_windows(chosen, tiny_tokenizer())
    assert list(windows) == ["files", "news", "mail-test"]
    assert len(windows["files"]) < len(windows["news"]) == (20 * 41 - 1) // 16


def test_max_windows_holds_for_each(texts):
    chosen = config(texts, texts / "news", "evaluation.max_windows=2")
    assert {len(rows) for rows in evaluation_windows(chosen, tiny_tokenizer()).values()} == {2}


def test_each_data_set_is_joined_its_own_way(texts, monkeypatch):
    seen = {}

    def watch(documents, tokenizer, seq_len, max_windows, joiner):
        seen[documents[0].text] = joiner
        return token_windows(documents, tokenizer, seq_len, max_windows, joiner)

    monkeypatch.setattr("fedprune.evaluation.perplexity.token_windows", watch)
    monkeypatch.setattr(
        "fedprune.evaluation.perplexity.load_documents",
        lambda data, *_: [Document(f"w3 {data.name} " * 20, "g", "k")] * 9,
    )
    evaluation_windows(config(texts, "wikitext2,c4,ptb"), tiny_tokenizer())
    assert [text.split()[1] for text in seen] == ["files", "wikitext2", "c4", "ptb"]
    assert list(seen.values()) == ["eos", "blank_line", "space", "space"]


def test_files_are_joined_and_read_as_the_run_s_own_are(texts):
    more = ("data.joiner=blank_line", "data.text_key=body")
    found = evaluation_data(config(texts, f"{texts / 'news'},c4", *more))
    assert (found["news"].joiner, found["news"].text_key) == ("blank_line", "body")
    assert (found["c4"].joiner, found["c4"].text_key) == ("space", "text")


def test_what_cannot_be_had_is_told_and_left_out(texts, caplog):
    (texts / "mail" / "test.jsonl").write_text("{}\n")
    chosen = config(texts, f"/nowhere,wikitext2,{texts / 'mail'},{texts / 'news'}")
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)  # the logger does not propagate
    try:
        windows = evaluation_windows(chosen, tiny_tokenizer())
    finally:
        logger.removeHandler(caplog.handler)
    assert list(windows) == ["files", "news"]
    for words in ("'nowhere'", "'wikitext2'", "'mail'"):
        assert f"not evaluated on {words}" in caplog.text


def test_labels_are_unique_and_the_run_s_own_preset_is_not_measured_twice(texts):
    names = f"stdlib,{texts / 'news' / 'a b.txt'},{texts}/x/news/a%b.txt"
    found = evaluation_data(config_from_overrides([f"evaluation.datasets={names}"]))
    assert list(found) == ["stdlib", "news-a_b", "news-a_b-2"]
    assert found["stdlib"] == config_from_overrides([]).data
