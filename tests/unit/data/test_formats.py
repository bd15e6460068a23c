"""Rows and tables by many names, chats, and what is refused, skipped or left out with a word."""

import bz2
import gzip
import json
import lzma

import datasets
import pytest

from fedprune.config import compose_config, replace
from fedprune.data.clients import client_samples
from fedprune.data.documents import Document
from fedprune.data.texts import OwnTexts, load_documents, split_documents
from fedprune.errors import DataError
from fedprune.evaluation.perplexity import token_windows
from tests.support.architectures import tiny_tokenizer

FILES = compose_config({"data": "/nowhere"}).data
HUB = compose_config({"data": "hub", "overrides": "data.path=org/name"}).data
ROWS = [
    {"text": f"note {n}, all is well", "who": n % 3, "doc": {"body": f"b{n}"}} for n in range(40)
]
TEXTS = [row["text"] for row in ROWS]
CHAT = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5 w6"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def files(path, **changes):
    return replace(FILES, path=str(path), **changes)


def everything(config, node=None):
    found = load_documents(config, "train", node) + load_documents(config, "heldout", node)
    return sorted(found, key=lambda document: int(document.key.rpartition("#")[2]))


def lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path, kind):
    path = path / f"notes{kind}"
    flat = [{"text": row["text"], "who": row["who"]} for row in ROWS]
    if kind == ".csv":
        datasets.Dataset.from_list(flat).to_csv(path)
    elif kind == ".tsv":
        datasets.Dataset.from_list(flat).to_csv(path, sep="\t")
    elif kind == ".parquet":
        datasets.Dataset.from_list(flat).to_parquet(path)
    elif kind == ".json":
        path.write_text(json.dumps(ROWS, indent=1))
    else:
        pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
        path.write_bytes(pack.get(path.suffix, bytes)(lines()))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *(".jsonl", ".ndjson", ".jsonlines", ".jl", ".LDJSON", ".json"),
        *(".json.gz", ".jsonl.bz2", ".ndjson.xz", ".csv", ".tsv", ".parquet"),
    ],
)
def test_rows_by_whatever_name_as_a_file_and_in_a_folder(tmp_path, kind):
    path = write(tmp_path, kind)
    for source in (path, tmp_path):
        found = everything(files(source, group_key="who"))
        assert [document.text for document in found] == TEXTS
        assert {document.group for document in found} == {"0", "1", "2"}
        assert [document.key for document in found][:2] == [f"{path.name}#1", f"{path.name}#2"]
    # No copy of private texts.
    assert not any(file.stat().st_size for file in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("name", ["notes", "notes.data", "notes.rows.gz", "2026.11"])
def test_lines_of_objects_are_rows_whatever_the_name(tmp_path, name):
    packed = name.endswith(".gz")
    (tmp_path / name).write_bytes(gzip.compress(lines()) if packed else b"\n" + lines())
    for config in (files(tmp_path / name), replace(files(tmp_path), glob="*")):
        assert [document.text for document in everything(config)] == TEXTS


def test_what_only_looks_like_rows_is_text(tmp_path):
    for name, text in (("a.conf", "{not json}\n"), ("b.txt", '{"text": "x"}\n'), ("c", "[1]\n")):
        (tmp_path / name).write_text(text)
        texts = {
            document.text.strip()
            for part in ("train", "heldout")
            for document in load_documents(files(tmp_path / name), part)
        }
        assert texts - {""} == {text.strip()}


def test_packed_texts(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one<|endoftext|>two"))
    assert [document.text for document in everything(files(tmp_path))] == ["one", "two"]
    (tmp_path / "a.txt.gz").write_bytes(b"no such thing")
    with pytest.raises(DataError, match="cannot be"):
        everything(files(tmp_path))
    (tmp_path / "a.txt.gz").rename(tmp_path / "a.jsonl.zst")
    with pytest.raises(DataError, match="zstandard|cannot be"):
        everything(files(tmp_path))


def test_what_datasets_saved(tmp_path):
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, test=whole).save_to_disk(tmp_path / "two")
    datasets.DatasetDict(all=whole).save_to_disk(tmp_path / "odd")
    datasets.DatasetDict(a=whole, b=whole).save_to_disk(tmp_path / "other")
    for name in ("one", "two", "odd"):
        assert [document.text for document in everything(files(tmp_path / name))] == TEXTS
        config = replace(HUB, path=str(tmp_path / name))
        assert [document.text for document in everything(config)] == TEXTS
    test = replace(HUB, path=str(tmp_path / "two"), heldout_split="test", max_documents=3)
    assert [d.key for d in load_documents(test, "heldout")] == ["test#0", "test#1", "test#2"]
    for config in (files(tmp_path / "other"), replace(HUB, path=str(tmp_path / "other"))):
        with pytest.raises(DataError, match="splits 'a', 'b'.*data.split=NAME"):
            load_documents(config, "train")
    # Below a folder the rows are read, and what describes them is none.
    (tmp_path / "more").mkdir()
    whole.save_to_disk(tmp_path / "more" / "saved")
    assert [document.text for document in everything(files(tmp_path / "more"))] == TEXTS


@pytest.mark.parametrize(
    "name", ["a.html", "a.PDF", "a.xml", "a.docx", "a.csv.gz", "a.zip", "a.pkl"]
)
def test_what_is_neither_text_nor_rows_is_refused_with_the_way(tmp_path, name):
    (tmp_path / name).write_text("<p>the patient</p>")
    for config in (files(tmp_path / name), files(tmp_path, glob="*")):
        with pytest.raises(DataError, match="Convert it to .txt") as caught:
            load_documents(config, "train")
        assert "patient" not in str(caught.value)
    node = compose_config({"data": "node"}).data
    with pytest.raises(DataError) as caught:
        load_documents(node, "train", OwnTexts(str(tmp_path / name)))
    assert name not in caught.value.outside and "Convert it" in caught.value.outside


def test_what_a_folder_holds_besides_is_counted_in_the_log(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("a b c d e f")
    for name in ("smith.html", "jones.html", "x.pdf", "Makefile"):
        (tmp_path / name).write_text("x")
    load_documents(files(tmp_path), "train")
    assert "not read: 2 .html, 1 .pdf, 1 without a suffix" in caplog.text
    assert "smith" not in caplog.text


def test_a_broken_table_is_not_quoted(tmp_path):
    for name in ("a.csv", "a.parquet", "a.arrow"):
        path = tmp_path / name
        path.write_text("text\na\n" + "the patient,b,c\n" * 3)
        with pytest.raises(DataError, match="cannot be read as a table") as caught:
            load_documents(files(path), "train")
        assert "patient" not in str(caught.value) and caught.value.__cause__ is None


def test_a_few_rows_without_text_are_passed_over_and_many_are_not(tmp_path, caplog):
    path, rows = tmp_path / "a.jsonl", [*ROWS, {"text": None}, {"who": 3}]
    path.write_bytes(lines(rows))
    assert [document.text for document in everything(files(path))] == TEXTS
    assert "2 of 42 rows" in caplog.text and "hold no text" in caplog.text
    saved = datasets.Dataset.from_list([{"text": row.get("text")} for row in rows])
    saved.to_parquet(tmp_path / "set" / "train.parquet")
    found = everything(replace(HUB, path=str(tmp_path / "set")))
    assert [document.text for document in found] == TEXTS
    path.write_bytes(lines([{"text": "x"}] * 9 + [{"text": None}] * 2))
    with pytest.raises(DataError, match="line 10 has no text in field 'text'"):
        everything(files(path))


def test_fields_in_fields(tmp_path):
    path = write(tmp_path, ".jsonl")
    found = everything(files(path, text_key="doc.body", group_key="doc.body"))
    assert [document.text for document in found] == [row["doc"]["body"] for row in ROWS]
    assert found[3].group == "b3"
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "set" / "train.parquet")
    found = everything(replace(HUB, path=str(tmp_path / "set"), text_key="doc.body"))
    assert [document.text for document in found] == [row["doc"]["body"] for row in ROWS]
    path.write_bytes(lines([{"a.b": "dotted", "a": {"b": "nested"}}, {"a.b": "x", "a": 3}]))
    assert [d.text for d in everything(files(path, text_key="a.b"))] == ["dotted", "x"]


def chatting_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w9 {{ m.content }} {% endfor %}"
    return tokenizer


def test_chats_are_read_by_the_tokenizer_s_template(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(lines([{"messages": CHAT}] * 2 + [{"messages": [CHAT[0]]}] * 9))
    config = files(path, text_key="messages")
    chat = everything(config)[0]
    assert chat.text == "user: w3 w4\n\nassistant: w5 w6"
    assert chat.rendered(chatting_tokenizer()).split() == ["w9", "w3", "w4", "w9", "w5", "w6"]
    windows = token_windows([chat], chatting_tokenizer(), 6)
    assert windows.tolist() == [[9, 3, 4, 9, 5, 6]]
    for joiner in ("eos", "space"):
        with pytest.raises(DataError, match="no chat template"):
            token_windows([chat], tiny_tokenizer(), 6, joiner=joiner)
    for sampling in ("packed", "published"):
        run = compose_config(
            {"data": str(path), "overrides": "pruner.seq_len=2 pruner.num_calibration_samples=1"}
        )
        run = replace(run, data=replace(config, sampling=sampling))
        (sample,) = client_samples(run, [chat], chatting_tokenizer(), 0, 1)
        assert set(sample.tokens.tolist()) <= {9, 3, 4, 5, 6}


def test_messages_that_are_none_are_refused(tmp_path):
    for value in ([], [3], [{"role": "user"}], [{"role": "user", "content": 3}], {"role": "x"}):
        (tmp_path / "a.jsonl").write_bytes(lines([{"text": value}] * 3))
        with pytest.raises(DataError, match="has no text in field"):
            everything(files(tmp_path))


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9])
def test_equal_texts_are_never_on_both_sides(fraction):
    documents = [Document(f"text {n % 7}", "g", f"k{n}") for n in range(60)]
    train, heldout = split_documents(documents, fraction)
    assert train and heldout and len(train) + len(heldout) == 60
    assert not {one.text for one in train} & {one.text for one in heldout}
    assert split_documents(documents[::-1], fraction)[1] == heldout[::-1]


def test_one_text_many_times_is_cut():
    (train,), (heldout,) = split_documents(
        [Document("a b c d", "g", f"k{n}") for n in range(5)], 0.3
    )
    assert train.text + heldout.text == "a b c d"
