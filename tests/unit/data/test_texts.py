"""Documents from files and nodes, and the split into texts to calibrate and to evaluate on."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.config import compose_config, replace
from fedprune.data.documents import Document, cut
from fedprune.data.texts import OwnTexts, load_documents, split_documents
from fedprune.errors import DataError

FILES = compose_config({"data": "/nowhere"}).data
NODE = compose_config({"data": "node"}).data
TEXTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "text"
SECRET = "the patient's name"


def files(path, **changes):
    return replace(FILES, path=str(path), **changes)


def everything(config, node=None):
    return load_documents(config, "train", node) + load_documents(config, "heldout", node)


def corpus(folder: Path, names: int = 40) -> Path:
    for number in range(names):
        file = folder / f"site{number % 4}" / f"note{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"Text of note {number}.")
    return folder


# --- files ----------------------------------------------------------------------------------------


def test_a_folder_gives_documents_grouped_by_subfolder(tmp_path):
    documents = everything(files(corpus(tmp_path)))
    assert {d.group for d in documents} == {"site0", "site1", "site2", "site3"}
    assert {d.text for d in documents} == {f"Text of note {n}." for n in range(40)}
    assert len({d.key for d in documents}) == 40
    assert "site1/note5.txt#0" in {d.key for d in documents}


def test_only_known_and_visible_files_are_read_by_default(tmp_path):
    for name in ("a.txt", "b.MD", "c.jsonl", "d.json", "e.py", "f.png", ".g.txt", ".git/h.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "json"}' if "js" in name else f"in {name}")
    assert {d.group for d in everything(files(tmp_path))} == {"a", "b", "c", "d"}
    assert "".join(d.text for d in everything(files(tmp_path, glob="*.py"))) == "in e.py"


def test_texts_split_at_the_separator(tmp_path):
    file = tmp_path / "stories.txt"
    file.write_text("One.\n<|endoftext|>\n Two.<|endoftext|>\n\n<|endoftext|>Three.")
    documents = everything(files(file))
    assert {(d.text.strip(), d.group) for d in documents} == {
        ("One.", "stories"),
        ("Two.", "stories"),
        ("Three.", "stories"),
    }


def test_long_texts_become_contiguous_documents_in_order(tmp_path):
    text = "".join(f"Paragraph {n} has words.\n\n" for n in range(8_000))
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "test.txt").write_text("held out")
    config = files(tmp_path / "book.txt", heldout_path=str(tmp_path / "test.txt"))
    documents = load_documents(config, "train")
    assert "".join(d.text for d in documents) == text
    assert all(d.text.endswith(".\n\n") for d in documents)
    assert all(8_000 <= len(d.text) <= 24_000 for d in documents[:-1])
    assert [d.key for d in documents] == [f"book.txt#{n}" for n in range(len(documents))]


@given(st.text(alphabet="ab \n", max_size=300), st.integers(1, 40))
def test_pieces_join_to_the_text_and_keep_their_length(text, size):
    pieces = list(cut(text, size))
    assert "".join(pieces) == text
    assert all(len(piece) <= size + size // 2 for piece in pieces)
    assert all(len(piece) >= max(1, size // 2) for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("aaaa bb\ncc\n\ndd ee ff gg hh", "aaaa bb\ncc\n\n"),
        ("aaaa bbb\ncc dd ee ff gg hh ii", "aaaa bbb\n"),
        ("aaaa bbb cc dd ee ff gg hh ii", "aaaa bbb cc dd "),
        ("a" * 30, "a" * 16),
    ],
)
def test_cuts_prefer_paragraphs_then_lines_then_words(text, first):
    assert next(cut(text, 16)) == first


def test_windows_line_ends_and_byte_order_marks_vanish(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert "".join(d.text for d in everything(files(tmp_path))) == "one\ntwo\n"


def test_json_lines_with_fields(tmp_path):
    rows = [{"body": f"note {n}\u2028x", "clinic": n % 3, "other": None} for n in range(30)]
    file = tmp_path / "notes.jsonl"
    file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    documents = everything(files(file, text_key="body", group_key="clinic"))
    assert {(d.text, d.group) for d in documents} == {(r["body"], str(r["clinic"])) for r in rows}
    assert "notes.jsonl#3" in {d.key for d in documents}  # the number of the line
    assert {d.group for d in everything(files(file, text_key="body"))} == {"notes"}


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "ab\\ud83dcd"}')
    assert "".join(d.text for d in everything(files(tmp_path))) == "ab\ufffdcd"


def test_long_json_texts_are_cut_under_numbered_keys(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * 10_000}))
    keys = [d.key for d in everything(files(tmp_path))]
    assert sorted(keys) == ["a.jsonl#1/0", "a.jsonl#1/1", "a.jsonl#1/2"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", ["holds no text"]),
        ("a.txt", b" \n\t\n<|endoftext|>\n", ["holds no text"]),
        ("a.txt", f"fine\n{SECRET} \xff".encode("latin-1"), ["a.txt' line 2", "UTF-8"]),
        ("a.jsonl", b'{"text": "x"}\n\n{"body": "y"}', ["a.jsonl' line 3", "'text'", "text_key"]),
        ("a.jsonl", f'{{"text": ["{SECRET}"]}}'.encode(), ["line 1", "'text'", "`data.text_key`"]),
        ("a.jsonl", f'{{"text": "{SECRET}}}'.encode(), ["line 1", "not a JSON object"]),
        ("a.jsonl", f'"{SECRET}"'.encode(), ["line 1", "not a JSON object"]),
        ("a.json", b"[" * 100_000, ["line 1", "not a JSON object"]),
        ("a.jsonl", b'{"text": 5}', ["line 1", "'text'"]),
    ],
)
def test_bad_files_are_named_and_never_quoted(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError) as caught:
            load_documents(files(path), "train")
        for word in words:
            assert word in str(caught.value)
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None


def test_a_missing_group_field_names_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "who": "a"}\n{"text": "y"}')
    with pytest.raises(DataError, match=r"line 2 .*'who'.*`data.group_key`"):
        load_documents(files(tmp_path, group_key="who"), "train")


def test_missing_paths_and_empty_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"`data.path` '/nowhere' does not exist"):
        load_documents(FILES, "train")
    with pytest.raises(DataError, match=r"holds no text.*`data.glob` '\*.rst'"):
        load_documents(files(tmp_path, glob="*.rst"), "train")
    (tmp_path / "a.txt").write_text("x y")
    with pytest.raises(DataError, match=r"`data.heldout_path` .* does not exist"):
        load_documents(files(tmp_path, heldout_path="/nowhere"), "heldout")


def test_an_empty_file_among_others_is_passed_over(tmp_path):
    corpus(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    assert len(everything(files(tmp_path))) == 40


# --- held-out texts -------------------------------------------------------------------------------


def test_the_split_is_the_hash_of_the_key(tmp_path):
    config = files(corpus(tmp_path, 200), heldout_fraction=0.25)

    def held(key: str) -> bool:
        return int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) < 0.25 * 16**16

    train, heldout = load_documents(config, "train"), load_documents(config, "heldout")
    assert len(train) + len(heldout) == 200 and 30 < len(heldout) < 70
    assert all(held(d.key) for d in heldout) and not any(held(d.key) for d in train)


def test_a_growing_corpus_keeps_its_split(tmp_path):
    before = load_documents(files(corpus(tmp_path, 40)), "heldout")
    after = load_documents(files(corpus(tmp_path, 80)), "heldout")
    assert set(before) < set(after)


@given(st.integers(2, 12), st.floats(1e-9, 1 - 1e-9))
def test_small_corpora_still_have_both_parts(number, fraction):
    documents = [Document(f"text {n}", "g", f"k{n}") for n in range(number)]
    train, heldout = split_documents(documents, fraction)
    assert train and heldout
    assert sorted(train + heldout, key=documents.index) == documents
    assert split_documents(documents[::-1], fraction)[1] == heldout[::-1]


@given(st.text(alphabet="ab \n", min_size=2, max_size=80), st.floats(1e-9, 1 - 1e-9))
def test_a_single_document_gives_up_its_end(text, fraction):
    (train,), (heldout,) = split_documents([Document(text, "g", "k")], fraction)
    assert train.text + heldout.text == text and train.text and heldout.text
    assert (train.key, heldout.key) == ("k/train", "k/heldout")


def test_about_the_fraction_of_a_single_document_is_cut_at_a_word():
    text = "word " * 1_000
    _, (heldout,) = split_documents([Document(text, "g", "k")], 0.1)
    assert heldout.text == "word " * 100


def test_one_character_and_nothing_cannot_be_split():
    with pytest.raises(DataError, match="heldout_path"):
        split_documents([Document("x", "g", "k")], 0.1)
    with pytest.raises(DataError, match="no documents"):
        split_documents([], 0.1)


def test_a_held_out_path_inside_the_folder_is_not_trained_on(tmp_path):
    corpus(tmp_path, 8)
    for heldout in (tmp_path / "site1", tmp_path / "site2" / "note2.txt"):
        config = files(tmp_path, heldout_path=str(heldout))
        train, held = load_documents(config, "train"), load_documents(config, "heldout")
        assert len(train) + len(held) == 8 and held
        assert not {d.text for d in train} & {d.text for d in held}


def test_a_held_out_path_that_is_the_corpus_is_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("x y z")
    with pytest.raises(DataError, match="not under `data.heldout_path`"):
        load_documents(files(file, heldout_path=str(file)), "train")


def test_max_documents_takes_the_first(tmp_path):
    config = files(corpus(tmp_path, 40), max_documents=10)
    assert len(everything(config)) == 10


def test_the_standard_library_may_be_evaluated_on_other_text(tmp_path):
    (tmp_path / "a.txt").write_text("my text")
    config = replace(compose_config({}).data, heldout_path=str(tmp_path))
    assert [d.text for d in load_documents(config, "heldout")] == ["my text"]
    assert len(load_documents(config, "train")) > 1_000


# --- nodes ----------------------------------------------------------------------------------------


def test_each_node_reads_its_own_folder(tmp_path):
    for site in ("a", "b"):
        (tmp_path / site).mkdir()
        lines = [json.dumps({"note": f"{site} {n}"}) for n in range(20)]
        (tmp_path / site / "notes.jsonl").write_text("\n".join(lines))
        (tmp_path / site / "readme.txt").write_text("not this")
        node = OwnTexts(str(tmp_path / site), "note", "*.jsonl")
        assert {d.text for d in everything(NODE, node)} == {f"{site} {n}" for n in range(20)}


def test_a_node_keeps_a_share_apart_whatever_the_server_evaluates_on(tmp_path):
    corpus(tmp_path / "node")
    (tmp_path / "server.txt").write_text("the server's text")
    config = replace(NODE, heldout_path=str(tmp_path / "server.txt"))
    node = OwnTexts(str(tmp_path / "node"))
    assert everything(config, node) == everything(NODE, node)
    assert [d.text for d in load_documents(config, "heldout")] == ["the server's text"]


@pytest.mark.parametrize(
    ("part", "node", "words"),
    [
        ("train", OwnTexts(), "node_config has no `data-path`.*--node-config"),
        ("train", OwnTexts("/nowhere"), "node_config `data-path` '/nowhere' does not exist"),
        ("heldout", None, "`data.heldout_path`"),  # the server needs a text of its own
    ],
)
def test_what_a_node_and_its_server_lack_is_named(part, node, words):
    with pytest.raises(DataError, match=words):
        load_documents(NODE, part, node)


def test_whether_a_path_that_the_server_named_exists_is_never_told(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "empty.txt").write_text("")
    told = set()
    for name in ("nothing", "latin.txt", "empty.txt", ""):
        with pytest.raises(DataError) as caught:
            load_documents(files(tmp_path / name, glob="../*"), "train")
        told.add(caught.value.outside)
        assert str(tmp_path) in str(caught.value) or "`data.glob`" in str(caught.value)
    assert told == {"`data.path` gives no texts there. The node's own log says which."}


# --- real texts -----------------------------------------------------------------------------------


@pytest.mark.skipif(not TEXTS.is_dir(), reason="the sample texts are not beside this checkout")
def test_real_texts_keep_every_character():
    config = files(TEXTS / "c4" / "train.jsonl", heldout_path=str(TEXTS / "c4" / "test.jsonl"))
    rows = (TEXTS / "c4" / "train.jsonl").read_text(encoding="utf-8").split("\n")
    texts = [json.loads(row)["text"] for row in rows if row]
    assert "".join(d.text for d in load_documents(config, "train")) == "".join(texts)
    assert len(load_documents(config, "heldout")) == 200
    stories = everything(files(TEXTS / "tinystories" / "train.txt"))
    assert len(stories) == 1_900
    book = TEXTS / "literature" / "train.txt"
    text = book.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    config = files(book, heldout_path=str(TEXTS / "literature" / "test.txt"))
    assert "".join(d.text for d in load_documents(config, "train")) == text
    domains = {d.group for d in everything(files(TEXTS, glob="*/t*.txt"))}
    assert domains == {p.name for p in TEXTS.iterdir()}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("smith.txt", b"\xff\xfe\xfa", "is not UTF-8"),
        ("smith.jsonl", b'{"text": ', "is not a JSON object"),
        ("smith.jsonl", b'{"note": "x"}', "Set `data.text_key`"),
        ("smith.txt", b" ", "holds no text"),
    ],
)
def test_what_another_machine_is_told_names_no_file_and_no_folder(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_documents(NODE, "train", OwnTexts(str(tmp_path)))
    assert str(tmp_path) in str(caught.value) and words in str(caught.value)
    outside = caught.value.outside
    assert str(tmp_path) not in outside and "smith" not in outside
    assert words in outside or "no text in its field" in outside
