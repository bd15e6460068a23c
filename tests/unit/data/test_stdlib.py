"""The standard library as a text source: the split, its stability and its failures."""

import email.message
import inspect
import sys
import sysconfig
from pathlib import Path

import pytest

from fedprune.data import stdlib
from fedprune.data.documents import Document
from fedprune.data.stdlib import is_heldout, stdlib_documents
from fedprune.errors import DataError


@pytest.fixture(scope="module")
def train():
    return stdlib_documents("train")


@pytest.fixture(scope="module")
def heldout():
    return stdlib_documents("heldout")


def fresh(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Document]:
    """Read another folder in place of the standard library, language reference left out."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root))
    monkeypatch.setattr(stdlib, "_topics", lambda: iter(()))
    train, heldout = stdlib._splits.__wrapped__()
    return sorted([*train, *heldout], key=lambda document: document.key)


def test_splits_share_no_key_and_no_text(train, heldout):
    everything = [*train, *heldout]
    assert len({document.key for document in everything}) == len(everything)
    assert len({document.text for document in everything}) == len(everything)


def test_about_a_tenth_is_held_out(train, heldout):
    assert 0.07 < len(heldout) / (len(train) + len(heldout)) < 0.13
    assert len(train) > 3000


def test_split_depends_on_the_key_alone(train, heldout):
    assert not any(is_heldout(document.key) for document in train)
    assert all(is_heldout(document.key) for document in heldout)
    # Fixed values: a change would leak held-out text of published runs into training.
    keys = [f"os:function{number}" for number in range(40)]
    assert [number for number, key in enumerate(keys) if is_heldout(key)] == [3, 9, 29, 33, 36, 39]


def test_groups_are_packages_and_the_language_reference(train):
    sizes: dict[str, int] = {}
    for document in train:
        sizes[document.group] = sizes.get(document.group, 0) + len(document.text)
    assert max(sizes, key=lambda group: sizes[group]) == "topics"
    assert {"asyncio", "email", "os", "json", "unittest"} <= sizes.keys()
    assert len(sizes) > 100
    assert not {"site-packages", "test", "pydoc_data"} & sizes.keys()


def test_text_is_the_cleaned_docstring(train, heldout):
    found = {document.key: document for document in [*train, *heldout]}
    document = found["email.message:Message.get_payload"]
    assert document.group == "email"
    assert document.text == inspect.getdoc(email.message.Message.get_payload)


def test_documents_are_sorted_and_reproducible(train):
    assert train == sorted(train, key=lambda document: document.key)
    again, _ = stdlib._splits.__wrapped__()
    assert list(again) == train


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library of one module, and a home that knows nothing of it."""
    monkeypatch.setenv("FEDPRUNE_HOME", str(tmp_path / "home"))
    source = tmp_path / "library" / "m.py"
    source.parent.mkdir()
    source.write_text('"""The first text of a module, which is long enough to be kept."""\n')
    return source


def test_docstrings_are_parsed_once_and_again_when_a_source_changes(library, monkeypatch):
    first = fresh(library.parent, monkeypatch)
    with monkeypatch.context() as patched:
        patched.delattr(stdlib, "_parsed")
        assert fresh(library.parent, patched) == first
    library.write_text(library.read_text().replace("first", "second"))
    (again,) = fresh(library.parent, monkeypatch)
    assert again.text == first[0].text.replace("first", "second")
    for kept in (stdlib.home() / "texts").iterdir():  # a kill has left half of it
        kept.write_bytes(kept.read_bytes()[:-5])
    assert fresh(library.parent, monkeypatch) == [again]


def test_a_home_that_cannot_be_written_costs_time_only(library, monkeypatch):
    stdlib.home().write_text("no folder")
    (found,) = fresh(library.parent, monkeypatch)
    assert found.key == "m:"


def test_a_caller_cannot_change_what_the_next_one_gets(train):
    stdlib_documents("train").clear()
    assert stdlib_documents("train") == train


def test_keys_skips_and_duplicates(tmp_path, monkeypatch):
    def text(word: str) -> str:
        return f"{word} has a docstring that is long enough to be kept."

    def source(**docstrings: str) -> str:
        return "".join(f'def {name}():\n    """{doc}"""\n' for name, doc in docstrings.items())

    package = tmp_path / "pack"
    (package / "test").mkdir(parents=True)
    (package / "__init__.py").write_text(f'"""{text("module")}"""\n')
    (package / "inner.py").write_text(
        f'class C:\n    """{text("class")}"""\n'
        f'    if True:\n        def f(self):\n            """{text("first")}"""\n'
        f'    else:\n        async def f(self):\n            """{text("second")}"""\n'
    )
    (package / "test" / "test_it.py").write_text(source(t=text("test")))
    runs = "raise SystemExit  # sources are read, never run\n"
    (tmp_path / "alone.py").write_text(runs + source(brief="Too short.", copy=text("first")))
    (tmp_path / "broken.py").write_text("def (:\n")

    documents = fresh(tmp_path, monkeypatch)

    keys = {d.key: (d.group, d.text.split()[0]) for d in documents}
    copies = ["alone:copy", "pack.inner:C.f"]  # one text, two keys: a held-out key comes first
    kept = next((key for key in copies if is_heldout(key)), copies[0])
    assert keys == {
        "pack:": ("pack", "module"),
        "pack.inner:C": ("pack", "class"),
        kept: (kept.split(":")[0].split(".")[0], "first"),
        "pack.inner:C.f#2": ("pack", "second"),
    }


def test_a_text_in_both_splits_stays_held_out(tmp_path, monkeypatch):
    names = [f"f{number}" for number in range(100)]
    apart = {is_heldout(f"m:{name}") for name in names}
    assert apart == {True, False}
    body = '    """The very same text stands under a hundred different keys."""\n'
    (tmp_path / "m.py").write_text("".join(f"def {name}():\n{body}" for name in names))

    documents = fresh(tmp_path, monkeypatch)

    assert len(documents) == 1
    assert is_heldout(documents[0].key)


def test_missing_sources_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"`data\.source` 'stdlib'.*'files'"):
        fresh(tmp_path, monkeypatch)


def test_missing_language_reference_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"pydoc_data.*'files'"):
        stdlib._splits.__wrapped__()
