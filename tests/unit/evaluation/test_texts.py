"""The data sets of an evaluation: each under its own name, and one that fails never stops it."""

import json
import logging

import datasets
import pytest

from fedprune.config import config_from_overrides, evaluation_data
from fedprune.data.documents import Document
from fedprune.evaluation.perplexity import evaluation_windows, token_windows
from tests.support.architectures import tiny_tokenizer


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
