"""`evaluation.datasets`: presets and paths, told apart and checked before anything runs."""

import pytest

from fedprune.config import config_from_overrides, from_yaml, to_yaml
from fedprune.config.overrides import dataset_names, path_label, presets
from fedprune.errors import ConfigError


def test_names_are_trimmed_and_not_repeated():
    assert dataset_names(" c4, ptb,c4 ") == ["c4", "ptb"]
    assert dataset_names("") == []


def test_presets_are_the_data_sets_that_need_no_path():
    assert presets() == ["c4", "ptb", "stdlib", "wikitext2"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("wikitex2", ["'wikitex2'", "Did you mean 'wikitext2'"]),
        ("c4,,ptb", ["got ''"]),
        ("hub", ["'hub'", "'c4'"]),
        ("no-such-text", ["'no-such-text'", "paths"]),
    ],
)
def test_unknown_names_are_told_with_what_is_known(names, words):
    with pytest.raises(ConfigError) as caught:
        config_from_overrides([f"evaluation.datasets={names}"])
    for word in ("`evaluation.datasets`", *words):
        assert word in str(caught.value)


def test_paths_become_absolute_and_survive_the_way_to_the_nodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("x")
    config = config_from_overrides(["evaluation.datasets=wikitext2,./mine.txt,/else/where"])
    assert config.evaluation.datasets == f"wikitext2,{tmp_path / 'mine.txt'},/else/where"
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("path", "label"),
    [("/a/news", "news"), ("/a/news/test.txt", "news-test"), ("/", "texts"), ("./é.txt", "texts")],
)
def test_labels_of_paths(path, label):
    assert path_label(path) == label
