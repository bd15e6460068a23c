"""Data sets that the `datasets` library opens, here from local folders; and all that can fail."""

import gzip
import json

import datasets
import pytest

from fedprune.config import compose_config, replace
from fedprune.data.documents import PIECE_CHARACTERS
from fedprune.data.texts import load_documents
from fedprune.errors import DataError

HUB = compose_config({"data": "hub", "overrides": "data.path=org/name"}).data


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def save(folder, **splits):
    folder.mkdir()
    for split, rows in splits.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return replace(HUB, path=str(folder))


def rows(number, prefix="row"):
    return [{"text": f"{prefix} {n}", "who": f"owner{n % 3}"} for n in range(number)]


@pytest.mark.parametrize("limit", [None, 1_000])
def test_parquet_with_splits_whole_and_streamed(tmp_path, limit):
    config = save(tmp_path / "set", train=rows(50), test=rows(20, "test"))
    config = replace(config, heldout_split="test", group_key="who", max_documents=limit)
    train, heldout = load_documents(config, "train"), load_documents(config, "heldout")
    assert [d.text for d in train] == [f"row {n}" for n in range(50)]
    assert [d.text for d in heldout] == [f"test {n}" for n in range(20)]
    assert {d.group for d in train} == {"owner0", "owner1", "owner2"}
    assert (train[3].key, heldout[3].key) == ("train#3", "test#3")


def test_one_split_is_divided_by_hash(tmp_path):
    config = save(tmp_path / "set", train=rows(200))
    train, heldout = load_documents(config, "train"), load_documents(config, "heldout")
    assert len(train) + len(heldout) == 200 and 5 < len(heldout) < 40
    assert {d.group for d in train} == {config.path}


def test_max_documents_stops_reading(tmp_path):
    config = replace(save(tmp_path / "set", train=rows(100)), max_documents=7, heldout_split="x")
    assert [d.text for d in load_documents(config, "train")] == [f"row {n}" for n in range(7)]


def test_json_lines_folder_with_another_field(tmp_path):
    (tmp_path / "set").mkdir()
    lines = "\n".join(json.dumps({"body": f"b{n}"}) for n in range(9))
    (tmp_path / "set" / "train.jsonl").write_text(lines)
    config = replace(HUB, path=str(tmp_path / "set"), text_key="body", heldout_split="x")
    assert [d.text for d in load_documents(config, "train")] == [f"b{n}" for n in range(9)]


def test_lines_of_a_running_text_are_joined_to_its_published_form(tmp_path):
    lines = [" = Title = \n", ""] + [f"Sentence {n} of the text. \n" * 3 for n in range(600)]
    lines = [
        line for n, line in enumerate(lines) for line in ([line, ""] if n % 7 == 0 else [line])
    ]
    config = save(tmp_path / "set", train=[{"text": line} for line in lines])
    documents = load_documents(replace(config, heldout_split="x"), "train")
    assert "\n\n".join(d.text for d in documents) == "\n\n".join(lines)
    assert len(documents) > 2
    assert all(len(d.text) < 1.5 * PIECE_CHARACTERS for d in documents)


def test_rows_that_are_no_lines_stay_apart(tmp_path):
    texts = ["One.\n", "", "Two.", "Three.\n"]
    config = save(tmp_path / "set", train=[{"text": text} for text in texts])
    documents = load_documents(replace(config, heldout_split="x"), "train")
    assert [d.text for d in documents] == ["One.\n", "Two.", "Three.\n"]


@pytest.mark.parametrize("limit", [None, 10])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "valid"}, ["'valid'", "`data.split`"]),
        ({"subset": "nothing"}, ["`data.subset`", "nothing"]),
        ({"text_key": "body"}, ["`data.text_key`", "'body'", "'text', 'who'"]),
        ({"group_key": "site"}, ["`data.group_key`", "'site'", "'text', 'who'"]),
    ],
)
def test_wrong_choices_are_named(tmp_path, limit, changes, words):
    config = save(tmp_path / "set", train=rows(5))
    with pytest.raises(DataError) as caught:
        load_documents(replace(config, max_documents=limit, **changes), "train")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("limit", [None, 10])
def test_a_data_set_that_cannot_be_reached_is_named_with_the_way_out(limit):
    with pytest.raises(DataError) as caught:
        load_documents(replace(HUB, path="nobody/nothing-here", max_documents=limit), "train")
    for word in ("nobody/nothing-here", "network", "data=/path/to/texts"):
        assert word in str(caught.value)


def test_rows_without_text_are_refused_and_not_quoted(tmp_path):
    config = save(tmp_path / "set", train=[{"text": ["the patient's name"]}])
    with pytest.raises(DataError, match="Row 0 .* holds a list in column 'text'") as caught:
        load_documents(config, "train")
    assert "patient" not in str(caught.value)


@pytest.mark.parametrize("limit", [None, 10])
def test_a_broken_file_is_not_quoted(tmp_path, limit):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("text\na\n" + "the patient's name,b,c\n" * 3)
    config = replace(HUB, path=str(tmp_path / "set"), max_documents=limit, heldout_split="x")
    with pytest.raises(DataError) as caught:
        load_documents(config, "train")
    assert "patient" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_blank_data_sets_are_refused(tmp_path):
    config = save(tmp_path / "set", train=[{"text": " "}, {"text": ""}])
    with pytest.raises(DataError, match="holds no text"):
        load_documents(config, "train")


def preset(name, folder, **changes):
    """Return a preset of `data` whose data set lies in a local folder of the same layout."""
    return replace(compose_config({"data": name}).data, path=str(folder), **changes)


def gz_lines(file, texts):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in texts)
    file.write_bytes(gzip.compress(lines.encode()))


def test_c4_reads_one_file_of_each_split_and_long_documents_whole(tmp_path):
    long = "word " * PIECE_CHARACTERS
    gz_lines(tmp_path / "en" / "c4-train.00000-of-01024.json.gz", ["train a", long, "train b"])
    gz_lines(
        tmp_path / "en" / "c4-validation.00000-of-00008.json.gz", [f"v{n}" for n in range(1200)]
    )
    for other in ("en/c4-train.00001-of-01024", "en/c4-validation.00001-of-00008", "de/c4-train"):
        gz_lines(tmp_path / f"{other}.json.gz", ["another file"])
    config = preset("c4", tmp_path)
    assert [d.text for d in load_documents(config, "train")] == ["train a", long, "train b"]
    heldout = load_documents(config, "heldout")
    assert [d.text for d in heldout] == [f"v{n}" for n in range(1100)]
    assert [len(load_documents(replace(config, max_documents=2), "train"))] == [2]
    assert len(load_documents(replace(config, heldout_documents=None), "heldout")) == 1200


def test_ptb_reads_sentences_from_the_layout_of_the_hub_s_parquet_copy(tmp_path):
    for split in ("train", "validation", "test"):
        folder = tmp_path / "penn_treebank" / split
        folder.mkdir(parents=True)
        rows = [{"sentence": f" {split} no {n} <unk> "} for n in range(5)]
        datasets.Dataset.from_list(rows).to_parquet(folder / "0000.parquet")
    config = preset("ptb", tmp_path)
    assert [d.text for d in load_documents(config, "train")][:1] == [" train no 0 <unk> "]
    heldout = load_documents(config, "heldout")
    assert [d.text for d in heldout] == [f" test no {n} <unk> " for n in range(5)]


def test_wikitext2_s_test_split_joins_to_its_published_form(tmp_path):
    folder = tmp_path / "wikitext-2-raw-v1"
    folder.mkdir()
    lines = ["", " = Title = \n", "", *[f" Sentence {n} . \n" * 40 for n in range(200)], ""]
    for split in ("train", "validation", "test"):
        rows = [
            {"text": f"{split}\n" if line == "" and split != "test" else line} for line in lines
        ]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: wikitext-2-raw-v1/{split}-*\n"
            for split in ("train", "validation", "test")
        )
        + "---\n"
    )
    heldout = load_documents(preset("wikitext2", tmp_path), "heldout")
    assert "\n\n".join(d.text for d in heldout) == "\n\n".join(lines)
    assert len(heldout) > 2


def test_a_file_that_is_not_there_is_named_with_the_keys(tmp_path):
    gz_lines(tmp_path / "en" / "c4-train.00000-of-01024.json.gz", ["a"])
    with pytest.raises(DataError, match=r"'validation'.*`data.heldout_file`"):
        load_documents(preset("c4", tmp_path), "heldout")
